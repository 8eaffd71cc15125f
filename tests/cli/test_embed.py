"""`embed`: vectors of the texts of a file, in three formats, and search among them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from trivium.cli import embed, main, vectors

TEXTS = ["anna", "bene", "ooo", "an ape"]


@dataclass(frozen=True)
class Letters:
    """Embeds a text as how often it has each of four letters. A character is a token."""

    normalise: bool = True
    name: str = "letters"
    width: int = 4
    max_tokens: int = 30
    stop_at: str | None = None
    seen: list[str] = field(default_factory=list)

    def length(self, text: str) -> int:
        return len(text)

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Tensor:
        self.seen.extend(texts)
        if self.stop_at in texts:
            raise KeyboardInterrupt
        counts = torch.tensor([[float(text.count(c)) for c in "aeio"] for text in texts])
        return torch.nn.functional.normalize(counts, dim=1) if self.normalise else counts


def rows(texts: Sequence[str]) -> np.ndarray:
    made: np.ndarray = Letters().embed(texts).numpy()
    return made


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    Path("texts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    Path("model.gguf").touch()


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Letters]:
    def opened(**options: Any) -> Letters:
        letters = Letters(**options)

        def open_model(path: Path, given: dict[str, Any]) -> Letters:
            return Letters(given["normalise"], stop_at=letters.stop_at, seen=letters.seen)

        monkeypatch.setattr(embed, "_open", open_model)
        return letters

    opened()
    return opened


def run(*arguments: str, input: str | bytes = "") -> Result:
    return CliRunner().invoke(main, ["embed", "-m", "./model.gguf", *arguments], input=input)


def test_lines_of_json(play: Callable[..., Letters]) -> None:
    result = run("texts.txt")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert (result.exit_code, result.stderr) == (0, "")
    assert [(one["index"], one["text"]) for one in found] == list(enumerate(TEXTS))
    np.testing.assert_array_equal(
        np.array([one["embedding"] for one in found], np.float32), rows(TEXTS)
    )


@pytest.mark.parametrize("ending", vectors.ENDINGS)
def test_files_of_vectors(play: Callable[..., Letters], ending: str) -> None:
    out = f"out/vectors{ending}"
    result = run("texts.txt", "-o", out)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "vectors 4 × 4, by letters" in result.stderr
    if ending == ".npy":
        found = np.load(out)
    elif ending == ".npz":
        found = np.load(out)["vectors"]
    else:
        lines = Path(out).read_text().splitlines()
        found = np.array([json.loads(line)["embedding"] for line in lines], np.float32)
    np.testing.assert_array_equal(found, rows(TEXTS))
    assert [path.name for path in Path("out").iterdir()] == [f"vectors{ending}"]
    assert run("texts.txt", "-o", out).exit_code == 2, "it is there already"
    assert run("texts.txt", "-o", out, "--force").exit_code == 0


@pytest.mark.parametrize("ending", vectors.ENDINGS)
def test_an_interrupted_run_goes_on(
    play: Callable[..., Letters], monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(embed, "BLOCK", 2)
    play(stop_at="ooo")
    stopped = run("texts.txt", "-o", f"v{ending}")
    assert stopped.exit_code == 130 and "stopped after 2 texts" in stopped.stderr
    assert not Path(f"v{ending}").exists()
    (partial,) = Path().glob(f".v{ending}.*.partial")
    with partial.open("ab") as file:  # killed in the middle of a row
        file.write(b"12345")
    letters = play()
    again = run("texts.txt", "-o", f"v{ending}")
    assert again.exit_code == 0 and "2 texts are done already" in again.stderr
    assert letters.seen == TEXTS[2:]
    assert run("texts.txt", "-o", f"whole{ending}").exit_code == 0
    assert Path(f"v{ending}").read_bytes() == Path(f"whole{ending}").read_bytes() or (
        ending == ".npz"  # which holds the time
        and np.array_equal(np.load("v.npz")["vectors"], np.load("whole.npz")["vectors"])
    )
    assert not list(Path().glob(".*.partial"))


def test_other_settings_do_not_go_on(
    play: Callable[..., Letters], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "BLOCK", 2)
    play(stop_at="ooo")
    run("texts.txt", "-o", "v.npy")
    letters = play()
    assert run("texts.txt", "-o", "v.npy", "--no-normalise").exit_code == 0
    assert letters.seen == TEXTS, "all of them again"
    assert np.load("v.npy").max() == 3
    assert not list(Path().glob(".*.partial")), "what the other run left is gone"


def test_search(play: Callable[..., Letters]) -> None:
    result = run("texts.txt", "--search", "oo", "--search", "a", "-k", "2", "--json")
    first, second = json.loads(result.stdout)
    assert [(hit["text"], hit["line"]) for hit in first["results"]][0] == ("ooo", 3)
    assert first["results"][0]["cosine"] == pytest.approx(1)
    assert [hit["text"] for hit in second["results"]] == ["anna", "an ape"]
    plain = run("texts.txt", "--search", "oo", "-k", "1")
    assert plain.stdout.split() == ["1.0000", "3", "ooo"]


def test_search_among_stored_vectors(play: Callable[..., Letters]) -> None:
    run("texts.txt", "-o", "v.npy")
    letters = play()
    result = run("texts.txt", "--search", "oo", "-k", "1", "--vectors", "v.npy")
    assert result.stdout.split() == ["1.0000", "3", "ooo"]
    assert letters.seen == ["oo"], "texts are not embedded again"
    Path("texts.txt").write_text("one\n")
    result = run("texts.txt", "--search", "oo", "--vectors", "v.npy")
    assert result.exit_code == 2 and "they are of another file" in result.stderr


@pytest.mark.parametrize(
    "name, data, arguments, texts",
    [
        ("a.jsonl", '{"text": "aa", "n": 1}\n"ee"\n', (), ["aa", "ee"]),
        ("a.jsonl", '{"x": "aa", "y": "ee"}\n', ("--field", "y"), ["ee"]),
        ("a.csv", 'text,n\n"a\na",1\nee,2\n', (), ["a\na", "ee"]),
        ("a.tsv", "x\ty\na\te\n", ("--field", "y"), ["e"]),
        ("a.dat", '"aa"\n', ("--format", "jsonl"), ["aa"]),
        ("a.txt", "\ufeffaa\r\n\nee", (), ["aa", "", "ee"]),
    ],
)
def test_what_files_hold(
    play: Callable[..., Letters], name: str, data: str, arguments: Sequence[str], texts: list[str]
) -> None:
    Path(name).write_text(data, newline="")
    result = run(name, *arguments)
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == texts


def test_long_texts(play: Callable[..., Letters]) -> None:
    Path("texts.txt").write_text("short\n" + "a" * 50 + "\n")
    result = run("texts.txt", "-o", "v.npy")
    assert result.exit_code == 2
    assert "texts.txt, line 2, has 50 tokens, and letters reads 30" in result.stderr
    result = run("texts.txt", "-o", "v.npy", "--truncate")
    assert result.exit_code == 0 and "only the beginning was read" in result.stderr


@pytest.mark.parametrize(
    "arguments, data, code, message",
    [
        (("none.txt",), None, 4, "no such file: none.txt"),
        ((".",), None, 2, "cannot read ."),
        (("texts.txt", "-o", "v.bin"), None, 2, "vectors are written as .npy, .npz, .jsonl"),
        (("texts.txt", "--json"), None, 2, "--json is for --search"),
        (("texts.txt", "--search", " "), None, 2, "needs a text that is not empty"),
        (("texts.txt", "--search", "a", "-o", "v.npy"), None, 2, "--search prints texts"),
        (("texts.txt", "--search", "a", "--vectors", "no.npy"), None, 4, "no such file: no.npy"),
        (("texts.txt", "--search", "a", "--vectors", "texts.txt"), None, 2, "no .npy or .npz"),
        (("texts.txt", "--search", "a" * 40), None, 2, "the query has 40 tokens"),
        (("texts.txt", "--field", "x"), None, 2, "have no fields"),
        (("a.jsonl",), b'{"text": 1}\n', 2, "a.jsonl, line 1: expected text, not 1"),
        (("a.jsonl",), b'"ok"\n{nope\n', 2, "a.jsonl, line 2: not valid JSON"),
        (("a.jsonl",), b'{"x": "a", "y": "b"}\n', 2, "which field is the text?"),
        (("a.csv",), b'text\n"open', 2, "a.csv, line 2"),
        (("a.txt",), b"ok\n\xff\n", 2, "a.txt, line 2, is not UTF-8 text"),
        (("a.txt",), b"a\0b\n", 2, "a.txt, line 1, is binary"),
        (("texts.txt", "-m", "remote:x"), None, 2, "remote:x is at an endpoint"),
        (("texts.txt", "-m", "./none.gguf"), None, 4, "no such file: none.gguf"),
    ],
)
def test_wrong_requests(
    play: Callable[..., Letters],
    arguments: tuple[str, ...],
    data: bytes | None,
    code: int,
    message: str,
) -> None:
    if data is not None:
        Path(arguments[0]).write_bytes(data)
    result = run(*arguments)
    assert result.exit_code == code, result.stderr
    assert message in result.stderr and result.stderr.count("\n") == 1
