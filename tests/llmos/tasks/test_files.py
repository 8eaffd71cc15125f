"""Tasks for whole files: what is read, in which order it is answered, and how it goes on."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivium.errors import NotFound, Refused, TriviumError, UsageError
from trivium.llmos.tasks import Fill, inputs, run_file
from trivium.llmos.tasks.asking import ItemError, Outcome
from trivium.llmos.tasks.inputs import read_texts, texts_of
from trivium.llmos.tasks.outputs import OutputFile
from trivium.llmos.tasks.pieces import by_relevance, pieces

Actor = Callable[..., Any]
ANYTHING = Fill({})


# -- pieces -------------------------------------------------------------------------------------

LONG = "One two.\n\nThree four! Five, six seven eight\n九十。百 " * 5


@given(st.text(alphabet="ab .\n,。é", max_size=60), st.integers(1, 12))
def test_pieces_joined_are_the_text(text: str, limit: int) -> None:
    parts = pieces(text, limit, len)
    assert "".join(parts) == text
    assert all(0 < len(part) <= limit for part in parts)


@pytest.mark.parametrize(
    "text, limit, parts",
    [
        ("", 5, []),
        ("short", 5, ["short"]),
        ("a b\n\nc d e\n\nf", 8, ["a b\n\n", "c d e\n\nf"]),
        ("One. Two. Three.", 10, ["One. Two. ", "Three."]),
        ("一二。三四。五", 3, ["一二。", "三四。", "五"]),
        ("abcdef", 3, ["abc", "def"]),
    ],
)
def test_where_texts_are_cut(text: str, limit: int, parts: list[str]) -> None:
    assert pieces(text, limit, len) == parts


def test_what_shares_words_with_the_question_comes_first() -> None:
    texts = ["the the the of", "salt is mined here", "the price of SALT, the mine's salt", "塩の道"]
    assert by_relevance("What does salt cost?", texts)[:2] == [2, 1]
    assert by_relevance("塩", texts)[0] == 3
    assert by_relevance("?", texts) == [0, 1, 2, 3]


# -- what is read -------------------------------------------------------------------------------

HUGE = b"x" * 200


@pytest.mark.parametrize(
    "data, suffix, field, expected",
    [
        (b"", ".txt", None, []),
        (b"one\r\n\n two \nlast", ".txt", None, ["one", " two ", "last"]),
        (b"\xef\xbb\xbfmark\n", ".txt", None, ["mark"]),
        ("日本\n".encode(), ".log", None, ["日本"]),
        (b"a\0b\nok\n\xff\n", ".txt", None, ["! binary", "ok", "! not UTF-8 text (byte 0)"]),
        (HUGE + b"\nok\n", ".txt", None, ["! larger than", "ok"]),
        (b'{"text": "a"}\n{"input": "b", "text": "c"}\n"d"', ".jsonl", None, ["a", "b", "d"]),
        (b'{"x": "a", "y": "b"}\n', ".jsonl", "y", ["b"]),
        (b'{"x": "a"}\n', ".jsonl", None, ["a"]),
        (b'{"x": "a", "y": "b"}\n', ".jsonl", None, ["! which field is it? (--field); there is x"]),
        (b'{"x": 1}\n[1]\n', ".jsonl", "x", ["! the field 'x' holds int", "! expected a JSON obj"]),
        (b'{nope\n{"text": "b"}\n', ".ndjson", None, ["! not valid JSON", "b"]),
        (b'{"text": "\\ud800"}\n{"text": " "}', ".jsonl", None, ["! not UTF-8 text", "! empty"]),
        (b"[" * 9_000 + b"\n", ".jsonl", None, ["! larger than"]),
        (b'text,n\n"a\nb",1\n,2\n', ".csv", None, ["a\nb", "! empty"]),
        (b"a\tb\n1\t2\n", ".tsv", "b", ["2"]),
        (b'text\nok\n"open', ".csv", None, ["ok", "! not CSV, from line 3 on"]),
        (b"text\n\xff\nok\n", ".csv", None, ["! not UTF-8 text", "ok"]),
    ],
)
def test_texts_of_files(
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    suffix: str,
    field: str | None,
    expected: list[str],
) -> None:
    monkeypatch.setattr(inputs, "LARGEST", 100)
    found = list(texts_of(io.BytesIO(data), suffix, "file", field))
    assert len(found) == len(expected)
    for (item, _), wanted in zip(found, expected, strict=True):
        if wanted.startswith("! "):
            assert isinstance(item, ItemError) and wanted[2:] in str(item)
        else:
            assert item == wanted
    if found:
        assert found[-1][1] == len(data), "all of the file has been passed"


@pytest.mark.parametrize(
    "name, field, error, message",
    [
        ("none.txt", None, NotFound, "no such file"),
        (".", None, UsageError, "cannot read"),
        ("a.txt", "x", UsageError, "--field is for JSONL and CSV"),
        ("a.csv", "x", UsageError, "has no column 'x'; it has text, n"),
    ],
)
def test_files_that_cannot_be_read(
    tmp_path: Path, name: str, field: str | None, error: type[TriviumError], message: str
) -> None:
    for made in ("a.txt", "a.csv"):
        (tmp_path / made).write_text("text,n\n")
    with pytest.raises(error, match=message):
        list(read_texts(tmp_path / name, field))


# -- how a file is answered -----------------------------------------------------------------------


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("".join(f"text {i}\n" for i in range(9)))
    return path


def answers(asker: Any, source: Path, **given: Any) -> Iterator[Any]:
    return run_file(ANYTHING, asker, source, source.with_name("out.jsonl"), **given)


def test_answers_keep_the_order_of_the_texts(actor: Actor, source: Path) -> None:
    second = threading.Event()

    def plays(text: str) -> str:
        if text == "text 1":  # is overtaken by the one behind it
            assert second.wait(10)
        if text == "text 2":
            second.set()
        return text.upper()

    asker = actor(plays)
    done = list(answers(asker, source))
    assert [one.index for one in done] == list(range(9))
    assert [line["output"] for line in lines(source.with_name("out.jsonl"))] == [
        f"TEXT {i}" for i in range(9)
    ]
    assert done[-1].position == source.stat().st_size
    assert not asker.cancelled.is_set()


def test_one_wrong_text_is_its_own_matter(actor: Actor, source: Path) -> None:
    def plays(text: str) -> str:
        if text == "text 1":
            raise ItemError("too hard")
        return "fine"

    list(answers(actor(plays), source))
    found = lines(source.with_name("out.jsonl"))
    assert (found[1]["output"], found[1]["error"]) == (None, "too hard")
    assert [line["output"] for line in found].count("fine") == 8


def test_a_run_goes_on_where_it_was_stopped(actor: Actor, source: Path) -> None:
    out = source.with_name("out.jsonl")
    asker = actor(str.upper)
    begun = answers(asker, source)
    assert [one.index for one in islice(begun, 4)] == [0, 1, 2, 3]
    begun.close()
    assert asker.cancelled.is_set()
    with out.open("ab") as file:  # a crash in the middle of a line
        file.write(b'{"index": 4, "inp')
    again = actor(str.upper)
    assert [one.index for one in answers(again, source)] == [4, 5, 6, 7, 8]
    assert [line["output"] for line in lines(out)] == [f"TEXT {i}" for i in range(9)]
    assert list(answers(actor(str.upper), source)) == []


def test_what_is_no_fault_of_a_text_ends_the_run(actor: Actor, source: Path) -> None:
    def plays(text: str) -> str:
        if text == "text 3":
            raise TriviumError("the endpoint is down")
        return "fine"

    asker = actor(plays)
    with pytest.raises(TriviumError, match="down"):
        list(answers(asker, source))
    assert asker.cancelled.is_set()
    assert len(lines(source.with_name("out.jsonl"))) == 3


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda out: out.write_text("hello\n"), "line 1 is not an answer"),
        (lambda out: out.write_text('{"index": 0}\n'), "made by another model"),
        (lambda out: out.write_text(out.read_text().replace("actor", "else")), "another model"),
        (lambda out: out.write_text(out.read_text().replace("text 1", "text x")), "another input"),
        (lambda out: out.write_text(out.read_text() * 2), "answers more inputs than there are"),
    ],
)
def test_the_file_of_another_run_is_not_touched(
    actor: Actor, source: Path, change: Callable[[Path], object], message: str
) -> None:
    out = source.with_name("out.jsonl")
    list(answers(actor(str.upper), source))
    change(out)
    before = out.read_bytes()
    with pytest.raises(UsageError, match=message):
        list(answers(actor(str.upper), source))
    assert out.read_bytes() == before
    assert len(list(answers(actor(str.upper), source, overwrite=True))) == 9


def test_one_process_writes(tmp_path: Path) -> None:
    own = {"model": "m", "task": "t"}
    with OutputFile(tmp_path / "out", **own) as first:
        first.append(0, "a", Outcome("\ud800", cut=True))
        with pytest.raises(Refused, match="another process is writing"):
            OutputFile(tmp_path / "out", **own)
    assert lines(tmp_path / "out") == [
        {"index": 0, "input": "a", "output": "\ud800", "cut": True, **own}
    ]
