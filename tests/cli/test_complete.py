"""`complete`: what is wrong is said before a model is loaded."""

import json
import math
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trivium.cli import main


def complete(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["complete", "-m", "./none.gguf", *arguments], input="")


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ((), 2, "the request is empty"),
        (("hi",), 4, "no such file: none.gguf"),
        (("hi", "-m", "remote:one"), 2, "remote:one is at an endpoint"),
        (("hi", "--regex", "a", "--choice", "b"), 2, "--regex and --choice cannot both hold"),
        (("hi", "--regex", "("), 2, "invalid regular expression"),
        (("hi", "--regex", "", "--choice", "b"), 2, "--regex and --choice cannot both hold"),
        (("hi", "--choice", ""), 2, "not empty"),
        (("hi", "--schema", "none.json"), 4, "no such file: none.json"),
        (("hi", "--schema", "."), 2, "cannot read .: Is a directory"),
        (("hi", "--temperature", "nan"), 2, "temperature must be a number"),
    ],
)
def test_wrong_requests(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = complete(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"{ nope", b"\xff\xfe", b'{"items":' * 100_000])
def test_a_file_that_is_no_schema(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(content)
    result = complete("hi", "--schema", str(path))
    assert result.exit_code == 2
    assert str(path) in result.stderr and result.stderr.count("\n") == 1
    assert "not valid JSON" in result.stderr or "not UTF-8 text" in result.stderr


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model.gguf"
    model.touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    result = complete("hi", "-m", str(model))
    assert result.exit_code == 2
    assert result.stderr == (
        "trivium: a model on this machine needs torch: pip install 'trivium[local]'\n"
    )


# -- with a model -------------------------------------------------------------------------------


def made(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["complete", "-m", str(folder), "Anna met", *arguments])


def test_logprobs_add_up(tiny_folder: Path) -> None:
    result = made(tiny_folder, "-n", "6", "--logprobs", "3", "--echo", "--json")
    found = json.loads(result.stdout)
    rows = found["logprobs"]
    assert len(rows) == 6
    for row in rows:
        assert len(row["top"]) == 3 and row["top"][0]["logprob"] >= row["logprob"]
        assert sum(math.exp(one["logprob"]) for one in row["top"]) <= 1
    assert found["prompt"] == "Anna met" and found["prompt_logprobs"][0]["logprob"] is None


def test_logprobs_in_lines(tiny_folder: Path) -> None:
    result = made(tiny_folder, "-n", "4", "--logprobs", "2")
    assert result.exit_code == 0
    head, *rows = result.stdout.splitlines()
    assert head.split()[0] == "token" and len(rows) == 4 and all("%" in row for row in rows)


def test_samples_differ_and_come_back(tiny_folder: Path) -> None:
    given = ("-t", "1.5", "--samples", "3", "--seed", "7", "-n", "8", "--json")
    found = json.loads(made(tiny_folder, *given).stdout)
    texts = [answer["text"] for answer in found["choices"]]
    assert len(set(texts)) == 3
    assert [answer["seed"] for answer in found["choices"]] == [7, 8, 9]
    alone = json.loads(made(tiny_folder, "-t", "1.5", "--seed", "8", "-n", "8", "--json").stdout)
    assert alone["text"] == texts[1]


def test_beams_are_in_order(tiny_folder: Path) -> None:
    given = ("--beams", "4", "--samples", "3", "-n", "6", "--json")
    answers = json.loads(made(tiny_folder, *given).stdout)["choices"]
    scores = [answer["score"] for answer in answers]
    assert len({answer["text"] for answer in answers}) == 3
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--samples", "2"), "would give the same text each time"),
        (("--length-penalty", "2"), "--length-penalty is of --beams"),
        (("--beams", "2", "--temperature", "1"), "--temperature has no say in it"),
        (("--beams", "2", "--stop", "x"), "--stop has no say in it"),
        (("-n", "1000"), "does not fit the context of 128 tokens"),
    ],
)
def test_options_that_contradict(
    tiny_folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = made(tiny_folder, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr and result.stderr.count("\n") == 1
