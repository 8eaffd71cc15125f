"""`trivium words`."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from trivium.cli.words import parsed, words
from trivium.errors import NotFound, UsageError
from trivium.language.word_vectors import WordVectors


@pytest.fixture
def file(tmp_path: Path) -> str:
    rows = [[5, 1, 0], [5, -1, 0], [0.5, 1, 1], [0.5, -1, 1], [-2, 0.1, -1]]
    names = ("king", "queen", "man", "woman", "the")
    WordVectors(names, np.array(rows, np.float32)).save(tmp_path / "v.bin")
    return str(tmp_path / "v.bin")


@pytest.mark.parametrize(
    ("expression", "first"),
    [(["king"], "queen"), (["king", "-", "man", "+", "woman"], "queen"), (["man"], "king")],
)
def test_neighbours(expression: list[str], first: str, file: str) -> None:
    found = CliRunner().invoke(words, [file, *expression, "-n", "2"], catch_exceptions=False)
    lines = [line.split() for line in found.stdout.splitlines()]
    assert lines[0][1] == first and len(lines) == 2
    assert float(lines[0][0]) >= float(lines[1][0])
    as_json = CliRunner().invoke(words, [file, *expression, "--json"], catch_exceptions=False)
    assert json.loads(as_json.stdout)[0]["word"] == first


def test_questions(file: str, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text(": family\nman king woman queen\nman king woman none\n")
    arguments = [file, "--questions", str(tmp_path / "q.txt")]
    found = CliRunner().invoke(words, arguments, catch_exceptions=False)
    assert found.stdout.splitlines()[-1].split() == ["all", "1", "1", "100.0%", "1"]
    as_json = CliRunner().invoke(words, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(as_json.stdout)["sections"][0]["left_out"] == 1


@pytest.mark.parametrize(
    ("expression", "sides"),
    [
        (["a"], (["a"], [])),
        (["a", "-", "b", "+", "c"], (["a", "c"], ["b"])),
        (["-", "b", "a"], (["a"], ["b"])),
        (["a", "−", "b-c"], (["a"], ["b-c"])),
    ],
)
def test_expressions(expression: list[str], sides: tuple[list[str], list[str]]) -> None:
    assert parsed(expression) == sides


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kinq"], "spelled like it: king"),
        (["king", "-"], "a word is missing"),
        ([], "give a word"),
        (["king", "-n", "0"], "--count"),
    ],
)
def test_what_is_wrong(arguments: list[str], said: str, file: str) -> None:
    with pytest.raises((UsageError, NotFound), match=said):
        CliRunner().invoke(words, [file, *arguments], catch_exceptions=False)
