"""`trivium rank`, by a person at a terminal."""

import json
import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trivium.cli import main, rank
from trivium.cli.comparisons import Comparison, Journal, comparisons, questions
from trivium.data import preferences
from trivium.errors import UsageError
from trivium.llmos.chat_model import ScriptedModel

HINT = "1 left is better"


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [sys.executable, "-m", "trivium", *arguments])
        self.text = ""

    def until(self, wanted: str, seconds: float = 60) -> str:
        """What came up to `wanted`, which is then forgotten."""
        end = time.monotonic() + seconds
        while wanted not in self.text:
            ready, _, _ = select.select([self.handle], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {wanted!r} in {self.text!r}"
            try:
                piece = os.read(self.handle, 4096)
            except OSError:
                piece = b""
            assert piece, f"ended before {wanted!r}: {self.text!r}"
            self.text += piece.decode(errors="replace")
        before, _, self.text = self.text.partition(wanted)
        return before

    def press(self, keys: str) -> None:
        time.sleep(0.1)  # what is pressed before the question stands there is dropped
        os.write(self.handle, keys.encode())

    def wait(self) -> int:
        while True:
            try:
                if not os.read(self.handle, 4096):
                    break
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield start
    for one in opened:
        os.close(one.handle)


def written(path: Path, *records: Mapping[str, Any]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    return path


CANDIDATES = [
    {"prompt": "What is 1 + 1?", "responses": ["two", "\x1b[31mthree"]},
    {"prompt": "大阪在哪里？", "responses": ["日本", "法国", "日本"]},
]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_an_evening_of_ranking(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    """Choices of a person, a kill in the middle, Ctrl-C, and the rest; then it is what the recipes
    read."""
    source = written(tmp_path / "answers.jsonl", *CANDIDATES)
    out = tmp_path / "ranked.jsonl"
    command = ["rank", str(source), "-o", str(out)]
    first = terminal(*command)
    shown = first.until(HINT)
    assert "What is 1 + 1?" in shown and "\x1b[31mthree" not in shown
    first.press("x1")  # an x is no answer
    shown = first.until(HINT)
    assert "大阪在哪里" in shown and "日本" in shown and "法国" in shown
    assert len(lines(out)) == 1  # on the disk before the next is shown
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    second = terminal(*command)
    assert "What is 1 + 1?" not in second.until(HINT)
    os.write(second.handle, b"\x03")
    second.until("0 choices more, 1 in all")
    assert second.wait() == 130
    third = terminal(*command)
    third.until(HINT)
    third.press("=")
    third.until(HINT)
    third.press("2")
    third.until("1 choices more, 2 in all")
    assert third.wait() == 0
    ties = lines(tmp_path / "ranked.ties.jsonl")
    assert [tie["verdict"] for tie in ties] == ["tie"]
    fourth = terminal(*command)
    fourth.until("nothing is left to compare")
    assert fourth.wait() == 0
    found = list(preferences(str(out)))
    assert len(found) == 2 and found[0].prompt[0]["content"] == "What is 1 + 1?"


@pytest.mark.parametrize("key", ["left", "right"])
def test_a_choice_names_the_answer_and_not_the_side(key: str, tmp_path: Path) -> None:
    source = written(
        tmp_path / "a.jsonl",
        *({"prompt": f"{i}", "responses": ["good", "bad"]} for i in range(40)),
    )
    journal = Journal(tmp_path / "ranked.jsonl")
    sides = set()
    for one in comparisons(questions(str(source)), (), journal.__contains__):
        sides.add(one.left)
        chosen = one.shown[0 if key == "left" else 1]
        journal.add(one, key)
        best = list(preferences(str(tmp_path / "ranked.jsonl")))[-1].responses[0]
        assert best[0]["content"] == chosen
    assert sides == {0, 1} and journal.count == 40


def test_two_models_answer_blind(tmp_path: Path) -> None:
    source = written(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "same"}, {"prompt": "b"})

    def says(name: str) -> Callable[[Sequence[Any]], str]:
        return lambda m: "same" if m[0]["content"] == "same" else f"{name} on {m[0]['content']}"

    answerers = [("runs/sft", says("sft")), ("runs/dpo", says("dpo"))]
    journal = Journal(tmp_path / "r.jsonl")
    found = list(comparisons(questions(str(source)), answerers, journal.__contains__))
    assert [c.answers for c in found] == [("sft on a", "dpo on a"), ("sft on b", "dpo on b")]
    journal.add(found[0], "left")
    again = Journal(tmp_path / "r.jsonl")
    rest = comparisons(questions(str(source)), answerers, again.__contains__)
    assert [c.answers[0] for c in rest] == ["sft on b"]
    assert lines(tmp_path / "r.jsonl")[0]["models"] == ["runs/sft", "runs/dpo"]


def test_one_model_answers_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def opened(name: str, settings: Any) -> ScriptedModel:
        seeds.append((name, settings.seed, settings.temperature))
        return ScriptedModel(f"drawn with {settings.seed}")

    monkeypatch.setattr("trivium.cli.session.open_model", opened)
    both = rank._Answerers(["m", "m"], {"max_tokens": 9, "device": None, "threads": None})
    asked = [{"role": "user", "content": "Hi"}]
    assert [answer(asked) for _, answer in (both[0], both[1])] == ["drawn with 0", "drawn with 1"]
    assert seeds == [("m", 0, 0.8), ("m", 1, 0.8)]
    assert both[0][0] != both[1][0]


def test_a_line_cut_by_a_crash_spoils_nothing(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    out.write_text('{"id": "abc", "prompt": [], "respon')
    journal = Journal(out)
    assert journal.count == 0
    message = [{"role": "user", "content": "q"}]
    journal.add(Comparison("k", message, ("a", "b")), "left")
    assert "k" in Journal(out) and Journal(out).count == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ('{"text": "a"}', "line 2: no prompt"),
        ('{"prompt": "a", "responses": ["b"]}', "line 2: 'responses' holds one reply"),
        ('{"prompt": "a", "responses": [1, 2]}', "line 2: 'responses' must be a text"),
        ('{"prompt": "a"}', "no model was given"),
    ],
)
def test_what_is_wrong_is_named(line: str, message: str, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"prompt": "a", "responses": ["b", "c"]}\n' + line + "\n")
    with pytest.raises(UsageError, match=message) as raised:
        list(comparisons(questions(str(source)), (), lambda key: False))
    assert "a.jsonl" in str(raised.value)


def test_a_person_is_needed(tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", *CANDIDATES)
    result = CliRunner().invoke(main, ["rank", str(source)], input="1\n1\n")
    assert result.exit_code == 2 and "it needs a terminal" in result.stderr
    assert not (tmp_path / "ranked.jsonl").exists()
