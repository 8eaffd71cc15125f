"""The search for better prompts: with a model that is told what works, and as a command."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trivium.cli import main
from trivium.errors import UsageError
from trivium.llmos.tasks.asking import Asker, Choice, Example, Form, ItemError, Outcome, Prompt
from trivium.llmos.tasks.choosing import Classify
from trivium.llmos.tasks.optimising import (
    Journal,
    Parts,
    Scored,
    Search,
    balanced,
    gain,
    is_right,
    search_name,
    task_for,
)
from trivium.llmos.tasks.writing import Fill

TEXTS = [Example(f"text {i}", "good" if i % 3 else "bad") for i in range(48)]
ANSWERS = {example.input: str(example.output) for example in TEXTS}


class Told(Asker):
    """Gets right what `knows` says of a prompt and a text; proposes `proposals` in turn."""

    name, parallel, guided = "told", 3, False

    def __init__(
        self, knows: Callable[[Prompt], bool], proposals: Sequence[str | None] = ()
    ) -> None:
        self._knows, self._proposals = knows, list(proposals)
        self.asked: list[Prompt] = []
        self.chosen = 0

    def choose(self, prompt: Prompt, labels: Sequence[str], *, calibrated: bool) -> Choice:
        self.chosen += 1
        right = ANSWERS[prompt.text]
        return Choice(right if self._knows(prompt) else labels[0])

    def ask(self, prompt: Prompt, form: Form, max_tokens: int) -> Outcome:
        self.asked.append(prompt)
        words = self._proposals.pop(0) if self._proposals else None
        if words is None:
            raise ItemError("nothing comes to mind")
        return Outcome({"instruction": words})

    def write(self, prompt: Prompt, begun: str, lark: str, max_tokens: int) -> tuple[str, bool]:
        raise AssertionError

    def tokens(self, text: str) -> int:
        return len(text)

    def room(self, prompt: Prompt, max_tokens: int) -> int:
        return 10_000 - 100 * len(prompt.shown)

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass


def search(asker: Asker, folder: Path, said: list[str] | None = None, seed: int = 0) -> Search:
    task, parts = task_for(TEXTS), Parts.of(TEXTS, seed)
    journal = Journal(folder / "journal.jsonl", search_name(task, asker.name, parts, seed))
    return Search(task, asker, parts, journal, (said if said is not None else []).append, seed)


def ways(shots: Sequence[int] = (1, 2), proposals: int = 3) -> dict[str, Any]:
    return {"rounds": 2, "proposals": proposals, "shots": shots, "draws": 2}


def test_parts_do_not_overlap_and_a_seed_draws_them() -> None:
    parts = Parts.of(TEXTS, 3)
    assert sorted(map(len, (parts.shown, parts.development, parts.held_out))) == [8, 16, 24]
    together = [*parts.shown, *parts.development, *parts.held_out]
    assert sorted(e.input for e in together) == sorted(ANSWERS)
    assert parts == Parts.of(TEXTS, 3) != Parts.of(TEXTS, 4)
    with pytest.raises(UsageError, match="too few"):
        Parts.of(TEXTS[:7], 0)


def test_the_words_that_work_are_found_and_shown_examples_too(tmp_path: Path) -> None:
    """The instruction wins with the word that the model knows; then two shots, since those are
    what gets the rest right."""

    def knows(prompt: Prompt) -> bool:
        odd = int(prompt.text.split()[1]) % 2 == 1
        return "mood" in prompt.instruction and (odd or len(prompt.shown) >= 2)

    asker = Told(knows, ["Say something nice.", "Which mood is it?", "Another mood?"])
    found = search(asker, tmp_path)
    best = found.run(**ways())
    assert best.task.instruction == "Which mood is it?"  # the first of those that tie
    assert len(best.task.examples) == 2
    assert set(best.task.examples) <= set(found.parts.shown)
    assert all(best.right) and best.count > found.tried[0].count
    shots = found.by_shots(best.task, [1, 2, 4])
    assert [count for count, _ in shots] == [0, 1, 2, 4]
    assert shots[1][1].count < shots[2][1].count == 24
    first, last = (found.score(t, found.parts.held_out) for t in (found.tried[0].task, best.task))
    change, low, high = gain(first, last)
    assert change == (last.count - first.count) / 24 and 0 < low < change < high


@pytest.mark.parametrize("better", [False, True])
def test_the_result_is_never_worse_and_ties_keep_the_first(better: bool, tmp_path: Path) -> None:
    """A model that gets as much right, or less, whatever it is told."""
    asker = Told(
        lambda prompt: better or (not prompt.shown and not prompt.text.endswith("7")),
        ["Do it in a worse way."] * 6,
    )
    found = search(asker, tmp_path)
    best = found.run(**ways())
    assert best.task == task_for(TEXTS) and best.origin == "as it was"
    assert max(one.count for one in found.tried) == best.count


def test_the_second_round_shows_what_was_wrong(tmp_path: Path) -> None:
    asker = Told(lambda prompt: False, ["One way to do it."] * 2 + [None, None])
    found = search(asker, tmp_path)
    found.run(**ways(proposals=2))
    first, *_, last = asker.asked
    assert "done wrongly" not in first.text and "done wrongly" in last.text
    shown = {e.input for e in found.parts.shown}
    assert all(line.removeprefix("Input: ") in shown for line in first.text.split("\n")[::2])


def test_a_search_that_was_stopped_goes_on(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def knows(prompt: Prompt) -> bool:
        if len(prompt.shown) == 2 and stopping:
            raise Stop
        return "way" in prompt.instruction

    stopping, words = True, [f"A {n} way to do it." for n in ("good", "bad", "new")] * 2
    asker = Told(knows, words)
    with pytest.raises(Stop):
        search(asker, tmp_path).run(**ways())
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"search": "x", "ke')  # cut by a crash
    stopping, again = False, Told(knows)  # which proposes nothing more
    best = search(again, tmp_path).run(**ways())
    assert best.task.instruction == "A good way to do it."
    assert 0 < again.chosen < asker.chosen and not again.asked
    third = Told(knows)
    assert search(third, tmp_path).run(**ways()) == best and third.chosen == 0


def test_examples_that_leave_no_room_do_not_end_it(tmp_path: Path) -> None:
    class Small(Told):
        def room(self, prompt: Prompt, max_tokens: int) -> int:
            if prompt.shown:
                raise UsageError("instruction, examples and an answer leave no room")
            return 1000

    said: list[str] = []
    found = search(Small(lambda prompt: True, []), tmp_path, said)
    assert found.run(**ways()).origin == "as it was"
    assert any("leave no room" in line for line in said)


# -- pieces ---------------------------------------------------------------------------------------


def test_what_kind_of_task_it_is() -> None:
    assert isinstance(task_for(TEXTS), Classify)
    assert isinstance(task_for([Example(str(i), f"answer {i}") for i in range(30)]), Fill)
    labelled = task_for(TEXTS, ["good", "bad", "mixed"])
    assert isinstance(labelled, Classify) and labelled.labels == ("good", "bad", "mixed")
    with pytest.raises(UsageError, match="other labels"):
        task_for(TEXTS, ["good", "worse"])
    with pytest.raises(UsageError, match="an output must be a text"):
        task_for([Example("a", 3)])


def test_shown_examples_take_turns() -> None:
    pool = [Example(str(i), "common" if i else "rare") for i in range(10)]
    for seed in range(5):
        chosen = balanced(pool, 3, random.Random(seed))
        assert len({e.input for e in chosen}) == 3
        assert sum(e.output == "rare" for e in chosen) == 1
    assert len(balanced(pool, 99, random.Random(0))) == 10


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        (" Paris. ", "paris", True),
        ("东京。", "东京", True),
        ("ＡＢ", "ab", True),
        ("", "", False),
        ("Lyon", "Paris", False),
    ],
)
def test_when_an_answer_is_right(answer: str, expected: str, right: bool) -> None:
    assert is_right(answer, expected) == right


def test_the_interval_of_a_gain() -> None:
    task = task_for(TEXTS)
    before = Scored(task, (False,) * 60 + (True,) * 40, "")
    after = Scored(task, (True,) * 20 + (False,) * 45 + (True,) * 35, "")
    change, low, high = gain(before, after)
    assert change == pytest.approx(0.15)
    spread = 1.96 * ((25 / 100 - 0.15**2) / 100) ** 0.5  # of a mean of −1, 0 and 1
    assert (low, high) == pytest.approx((0.15 - spread, 0.15 + spread))
    assert gain(before, before) == (0, 0, 0)


# -- the command ----------------------------------------------------------------------------------


def test_from_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asker = Told(lambda prompt: "mood" in prompt.instruction, ["Which mood is it?"] + [None] * 9)
    monkeypatch.setattr("trivium.cli.task.open_asker", lambda settings: asker)
    source, out = tmp_path / "task.jsonl", tmp_path / "out"
    source.write_text(
        "".join(json.dumps({"input": e.input, "output": e.output}) + "\n" for e in TEXTS)
    )
    command = ["optimise-prompt", str(source), "-m", "told", "-o", str(out), "--shots", "2"]
    result = CliRunner().invoke(main, [*command, "--json"], catch_exceptions=False)
    report = json.loads(result.stdout)
    assert report["instruction"] == "Which mood is it?" and report["examples"] == []
    assert report["held_out"]["after"]["share"] == 1 and report["held_out"]["interval"][0] > 0
    assert not (out / "examples.jsonl").exists()
    assert json.loads((out / "prompt.json").read_text()) == report
    again = CliRunner().invoke(main, command, catch_exceptions=False)
    assert "gain on held-out texts: +" in again.stdout and "Which mood is it?" in again.stdout
    few = tmp_path / "few.jsonl"
    few.write_text('{"input": "a", "output": "b"}\n{"input": 3}\n')
    for arguments, message in (
        ([str(few)], "example 2 must be"),
        ([str(tmp_path / "no.jsonl")], "no such file"),
        ([str(source), "--shots", "0"], "--shots 0: expected numbers above 0"),
    ):
        failed = CliRunner().invoke(main, ["optimise-prompt", *arguments, "-m", "told"])
        assert failed.exit_code in (2, 4) and message in failed.stderr


def test_replacing_an_instruction_keeps_the_task() -> None:
    task = replace(task_for(TEXTS), instruction="Which mood is it?")
    assert task.prompt.instruction.endswith("Which mood is it?")
