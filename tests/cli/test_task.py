"""`run --task` and `run --schema`: one text, a whole file, and what is wrong with a request."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from trivium.cli import main, task
from trivium.errors import TriviumError
from trivium.llmos.chat_model import ScriptedModel
from trivium.llmos.tasks.asking import Asker, Outcome, Prompt
from trivium.llmos.tasks.remote import ChatAsker

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def run(*arguments: str, input: str = "") -> Result:
    return CliRunner().invoke(main, ["run", *arguments], input=input)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    Path("person.json").write_text(json.dumps(PERSON))
    Path("in.txt").write_text("one\ntwo\nthree\n")
    Path("picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    (work / "model.gguf").touch()
    return work


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ScriptedModel]:
    """Have the tasks answered by these replies."""

    def script(*replies: Any) -> ScriptedModel:
        model = ScriptedModel(*replies)
        asker = ChatAsker("model", lambda form, max_tokens: model, parallel=1)
        monkeypatch.setattr(task, "open_asker", lambda settings: asker)
        return model

    return script


MODEL = ("-m", "./model.gguf")


def test_one_text(play: Callable[..., ScriptedModel]) -> None:
    model = play('{"label": "positive"}')
    result = run("--task", "sentiment", "I", "loved", "it.", *MODEL)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {"sentiment": "positive", "probability": None}
    assert "Text: I loved it." in model.calls[0][-1].text


def test_as_json(play: Callable[..., ScriptedModel]) -> None:
    play('{"name": "Änne"}')
    result = run("--schema", "person.json", "--json", *MODEL, input="Änne ist da.")
    found = json.loads(result.stdout)
    assert found.pop("seconds") >= 0
    assert found == {
        "model": "model",
        "task": "fill",
        "output": {"name": "Änne"},
        "cut": False,
    }


def test_a_document_and_a_question(play: Callable[..., ScriptedModel]) -> None:
    model = play('{"quote": "two", "answer": "2"}')
    result = run("--task", "answer", "-a", "in.txt", "Which is second?", *MODEL)
    assert json.loads(result.stdout) == {"answer": "2", "quote": "two"}
    assert "one\ntwo\nthree\n\n\nQuestion: Which is second?" in model.calls[0][-1].text


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (("--task", "sentiment"), 2, "the request is empty"),
        (("--task", "nonsense", "x"), 2, "Invalid value for '--task'"),
        (("--task", "classify", "x"), 2, "needs its labels: --label ONE --label OTHER"),
        (("--task", "classify", "--label", "a", "x"), 2, "two or more different labels"),
        (("--task", "translate", "x"), 2, "needs --to LANGUAGE"),
        (("--task", "sentiment", "--to", "French", "x"), 2, "--to is not for --task sentiment"),
        (("--schema", "person.json", "--words", "9", "x"), 2, "--words is not for --schema"),
        (("--task", "answer", "x"), 2, "needs a question and a document"),
        (("--task", "sentiment", "--schema", "person.json", "x"), 2, "cannot both hold"),
        (("--schema", "none.json", "x"), 4, "no such file: none.json"),
        (("--schema", "in.txt", "x"), 2, "in.txt is not a JSON schema"),
        (("--label", "a", "x"), 2, "--label needs --task NAME or --schema FILE"),
        (("--task", "sentiment", "--output", "out", "x"), 2, "--output needs --input FILE"),
        (("--task", "sentiment", "-a", "in.txt", "x"), 2, "a task has one text"),
        (("--task", "sentiment", "-a", "picture.png"), 2, "is a picture; a task reads text"),
        (("--task", "sentiment", "--input", "in.txt", "x"), 2, "the texts come from in.txt"),
        (("--task", "answer", "--input", "in.txt"), 2, "needs a question about each text"),
        (("--task", "sentiment", "--input", "none.txt"), 4, "no such file: none.txt"),
        (
            ("--task", "sentiment", "--input", "in.txt", "--output", "in.txt"),
            2,
            "--input and --output are the same file",
        ),
        (("--task", "sentiment", "--examples", "none.jsonl", "x"), 4, "no such file"),
        (("--task", "sentiment", "--yes", "x"), 2, "--yes is for a conversation"),
        (("--task", "sentiment", "x", "-m", "./none.gguf"), 4, "no such file: none.gguf"),
    ],
)
def test_wrong_requests(folder: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    result = run(*arguments, *(() if "-m" in arguments else MODEL))
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def labels(*names: str) -> tuple[str, ...]:
    return tuple(f'{{"label": "{name}"}}' for name in names)


FILE = ("--task", "sentiment", "--input", "in.txt", "--output", "out.jsonl", *MODEL)


def outputs() -> list[Any]:
    return [json.loads(line)["output"] for line in Path("out.jsonl").read_text().splitlines()]


def test_a_whole_file_and_again(play: Callable[..., ScriptedModel]) -> None:
    play(*labels("positive", "negative", "neutral"))
    result = run(*FILE)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "3 answered" in result.stderr and "out.jsonl" in result.stderr
    assert [one["sentiment"] for one in outputs()] == ["positive", "negative", "neutral"]
    play()  # nothing is asked again
    again = run(*FILE)
    assert (again.exit_code, again.stderr) == (0, "nothing to do, all is answered\n")
    play(*labels("negative") * 3)
    assert run(*FILE, "--overwrite").exit_code == 0
    assert [one["sentiment"] for one in outputs()] == ["negative"] * 3


def test_onto_stdout_from_stdin(play: Callable[..., ScriptedModel]) -> None:
    play(*labels("positive"))
    result = run("--task", "sentiment", "--input", "-", *MODEL, input="fine\n")
    line = json.loads(result.stdout)
    assert (result.exit_code, line["index"], line["input"]) == (0, 0, "fine")


def test_texts_without_an_answer(play: Callable[..., ScriptedModel]) -> None:
    wrong = "no JSON at all"
    play(*labels("positive"), wrong, wrong, *labels("neutral"))
    result = run(*FILE)
    assert result.exit_code == 1
    assert "input 1: the answer is not JSON" in result.stderr and "1 failed" in result.stderr
    assert [one and one["sentiment"] for one in outputs()] == ["positive", None, "neutral"]


@pytest.mark.parametrize(
    "error, code, message",
    [
        (KeyboardInterrupt(), 130, "stopped; to go on: trivium "),
        (TriviumError("the endpoint is down"), 1, "the endpoint is down"),
    ],
)
def test_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    class Stopped(ChatAsker):
        def choose(self, prompt: Prompt, *given: Any, **more: Any) -> Any:
            if prompt.text == "two":
                raise error
            return super().choose(prompt, *given, **more)

    def opened(*replies: str) -> Asker:
        model = ScriptedModel(*replies)
        return Stopped("model", lambda form, max_tokens: model, parallel=1)

    monkeypatch.setattr(task, "open_asker", lambda settings: opened(*labels("positive", "neutral")))
    result = run(*FILE)
    assert result.exit_code == code
    assert message in result.stderr and "to go on: trivium" in result.stderr
    assert len(outputs()) == 1


def test_a_cut_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cutting(ChatAsker):
        def ask(self, *given: Any) -> Outcome:
            return Outcome({"name": "A"}, cut=True)

    asker = Cutting("model", lambda form, max_tokens: ScriptedModel())
    monkeypatch.setattr(task, "open_asker", lambda settings: asker)
    result = run("--schema", "person.json", "x", *MODEL)
    assert json.loads(result.stdout) == {"name": "A"} and "the answer is cut" in result.stderr


def test_a_model_of_this_machine(tiny_folder: Path) -> None:
    """From the command line to the engine and back."""
    result = run("--task", "sentiment", "Anna met Ben.", "-m", str(tiny_folder))
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["sentiment"] in ("positive", "negative", "neutral")
    assert 1 / 3 <= found["probability"] <= 1
