"""Texts from anywhere, in blocks that can be read one without the other."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium import data
from trivium.data import textfiles
from trivium.data.textfiles import Blocks, File
from trivium.errors import NotFound, UsageError

Write = Callable[[str, str | bytes], str]
PIECES = st.sampled_from(["a", "bc", "é", "日本", " ", "  ", "\n", "\n\n", "\r\n", "🙂", '"'])


def blocks_of(path: Path, size: int, *, records: bool) -> Blocks:
    blocks = Blocks([File(str(path), path.name, path.stat().st_size, records)])
    blocks.size = size
    count = -(-blocks.bytes // size)
    blocks._pieces, blocks._ends = [count], [count]
    return blocks


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, max_size=120), st.integers(16, 60))
def test_the_blocks_of_a_text_are_the_text(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], size: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes("".join(pieces).encode())
    if not path.stat().st_size:
        return
    blocks = blocks_of(path, size, records=False)
    parts = [part for n in range(len(blocks)) if (part := blocks.part(n))]
    assert "".join(part.text for part in parts) == "".join(pieces).replace("\r\n", "\n")
    assert parts[0].starts and parts[-1].ends
    assert not any(part.starts for part in parts[1:]) and not any(p.ends for p in parts[:-1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab\\é", max_size=12), min_size=1, max_size=30), st.integers(1, 40))
def test_each_line_belongs_to_one_block(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    path.write_bytes(b"\n".join(json.dumps(text).encode() for text in texts))
    blocks = blocks_of(path, size, records=True)
    found = [line for n in range(len(blocks)) for line in blocks.lines(n)]
    assert [json.loads(line) for _, line in found] == texts
    assert [str(place) for place, _ in found] == [
        f"lines.jsonl, line {number}" for number in range(1, len(texts) + 1)
    ]


def rows(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", rows("eins", "zwei")),
        ("a.jsonl", "\ufeff" + rows("eins", "zwei").replace("\n", "\r\n\n")),
        ("a.ndjson", '"eins"\n"zwei"'),
        ("a.json", json.dumps([{"content": "eins"}, {"content": "zwei"}], indent=1)),
        ("a.json", rows("eins", "zwei")),
        ("a.csv", "text,n\neins,1\nzwei,2\n"),
        ("a.tsv", "n\ttext\n1\teins\n2\tzwei\n"),
        ("a.jsonl.gz", gzip.compress(rows("eins", "zwei").encode(), mtime=0)),
        ("a.json.gz", gzip.compress(json.dumps(["eins", "zwei"]).encode(), mtime=0)),
        ("folder/b.txt", "zwei"),
    ],
)
def test_all_formats(write: Write, name: str, content: str | bytes) -> None:
    path = write(name, content)
    if name.startswith("folder"):
        write("folder/a/a.md", "eins")
        write("folder/.hidden", "no")
        write("folder/picture.png", b"\x89PNG\0\0")
        path = str(Path(path).parent)
    assert sorted(data.documents(path)) == ["eins", "zwei"]


BROKEN = '{"text": "ok"}\n' * 6
CASES = {
    "empty": ("", "is empty"),
    "line 7": (BROKEN + '{"text": \n', "line 7: not valid JSON"),
    "bytes": (BROKEN.encode() + b'{"text": "\xff"}', "line 7: not UTF-8 text"),
    "number": (BROKEN + '{"text": 7}', "line 7: expected a text, not 7"),
    "list": (BROKEN + "[1]", "line 7: expected a JSON object or a text"),
    "field": (BROKEN + '{"txt": 1}', "7: no field 'text' or 'content': the record has 'txt'"),
    "deep": (BROKEN + "[" * 100_000, "line 7: not valid JSON"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_has_file_and_line(write: Write, case: str) -> None:
    content, message = CASES[case]
    path = write("bad.jsonl", content)
    with pytest.raises(UsageError, match=r"bad\.jsonl") as caught:
        list(data.documents(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if content:
        corpus = data.documents(path, skip_broken=True)
        assert len(list(corpus)) == len(list(corpus)) == 6
        assert corpus.broken == 1 and "line 7" in corpus.first_broken[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe", "a.txt is not UTF-8 text (byte 0)"),
        ("a.txt", b"ab\0", "a.txt is binary"),
        (
            "a.txt.gz",
            gzip.compress(b"text " * 50, mtime=0)[:-20],
            "a.txt.gz is broken, or cut short",
        ),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "record 2: expected a comma"),
        ("a.json", '[{"text": "a"}, {"text"', "record 2: not valid JSON"),
        ("a.csv", "text,n\na\n", "a.csv, line 2: expected 2 cells"),
        ("a.parquet", b"PAR1", "a.parquet needs pyarrow: pip install pyarrow"),
        ("a.jsonl.zst", b"(\xb5/\xfd", "a.jsonl.zst needs zstandard"),
    ],
)
def test_broken_files(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str, content: str | bytes, message: str
) -> None:
    for module in ("pyarrow", "zstandard"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UsageError) as caught:
        list(data.documents(write(name, content)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("missing.txt", NotFound, "no such file or folder: missing.txt"),
        ("missing/*.txt", NotFound, "no file matches"),
        ("hf:a:b:c:d", UsageError, "is not hf:NAME"),
        ("hf:someone/some-data", UsageError, "not in the cache, and TRIVIUM_OFFLINE is set"),
        ("/dev/null", UsageError, "neither a file nor a folder"),
    ],
)
def test_no_such_source(
    monkeypatch: pytest.MonkeyPatch, source: str, kind: type[Exception], message: str
) -> None:
    monkeypatch.setenv("TRIVIUM_OFFLINE", "1")
    with pytest.raises(kind, match=message):
        data.documents(source)


def test_a_copy_is_made_once_and_again_when_the_file_changes(write: Write) -> None:
    path = write("a.csv", "text\neins\n")
    assert list(data.documents(path)) == ["eins"]
    write("a.csv", "text\nzwei!\n")
    assert list(data.documents(path)) == ["zwei!"]


def test_held_out_parts(write: Write) -> None:
    texts = [f"text number {i}" for i in range(400)]
    corpus = data.documents(write("a.jsonl", rows(*texts, *texts[:50])))
    train, held_out = corpus.split(0.1)
    assert {*train} | {*held_out} == {*texts} and not {*train} & {*held_out}
    assert 20 <= len(list(held_out)) <= 70
    backwards = data.documents(write("b.jsonl", rows(*reversed(texts))))
    assert {*backwards.split(0.1)[1]} == {*held_out}
    assert train.fingerprint != held_out.fingerprint != corpus.fingerprint
    with pytest.raises(UsageError, match="a single document"):
        data.documents(["one"]).split(0.5)
    for share in (0.0001, 0.9999):  # neither side is ever empty
        assert all(list(part) for part in data.documents(["a", "b"]).split(share))


def test_the_embedded_text() -> None:
    corpus = data.documents()
    assert "CPython" in corpus.description and corpus.bytes > 300_000
    assert corpus.hash == data.documents().hash and "while" in "".join(corpus)


def test_the_hash_is_of_the_contents(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    first, same = write("x/a.txt", "abc"), write("y/a.txt", "abc")
    other = write("z/a.txt", "abd")
    hashes = [data.documents(path).hash for path in (first, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    monkeypatch.setattr(textfiles, "READ_WHOLE", 2)
    assert data.documents(first).hash.startswith("sampled-sha256:")


def test_half_characters_are_replaced(write: Write) -> None:
    path = write("a.jsonl", '"a\\ud83d"\n"\\ud83d\\ude42"')
    assert list(data.documents(path)) == ["a\ufffd", "🙂"]
