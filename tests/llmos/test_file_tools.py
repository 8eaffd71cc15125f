"""The file tools as a model uses them, on files as people have them."""

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivium.errors import TriviumError
from trivium.llmos import beneath, file_tools
from trivium.llmos.tools import ToolError, ToolOutput
from trivium.llmos.workspace import Workspace

Use = Callable[..., ToolOutput]
LATIN = "[not UTF-8, read as Latin-1: letters other than a-z may be wrong]"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "home"))
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "notes.txt").write_text("first line\nsecond Line\n")
    (folder / "docs").mkdir()
    (folder / "docs" / "计划.md").write_text("# 计划\n预算 100 万\n")
    return folder


@pytest.fixture
def use(root: Path) -> Use:
    tools = {tool.name: tool for tool in file_tools.file_tools(Workspace(root))}

    def use(name: str, **arguments: str) -> ToolOutput:
        tools[name].check(arguments)
        output = tools[name].function(**arguments)
        assert isinstance(output, ToolOutput)
        output.text.encode()
        return output

    return use


def test_the_fixed_signatures(root: Path) -> None:
    tools = file_tools.file_tools(Workspace(root))
    found = {
        tool.name: (tool.effect, list(tool.parameters["properties"]), tool.parameters["required"])
        for tool in tools
    }
    assert found == {
        "read_file": ("read", ["path"], ["path"]),
        "write_file": ("write", ["path", "text"], ["path", "text"]),
        "list_files": ("read", ["path"], []),
        "search_files": ("read", ["pattern", "path"], ["pattern"]),
    }


# --- read_file ----------------------------------------------------------------------------------


def test_read_says_whose_text_it_is(use: Use) -> None:
    output = use("read_file", path="./docs/../notes.txt")
    assert output.text == "first line\nsecond Line\n"
    assert output.sources == {"file:notes.txt"}
    assert output.files == ()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "[the file is empty]"),
        ("héllo 😀".encode(), "héllo 😀"),
        (b"\xef\xbb\xbfmarked", "marked"),
        ("你好\n".encode("utf-16"), "你好\n"),
        (b"\xfe\xff" + "你好\n".encode("utf-16-be"), "你好\n"),
        ("你好\n".encode("utf-32"), "你好\n"),
        (b"caf\xe9", f"café\n{LATIN}"),
        (b"\xff\xfe\x00", f"ÿþ\x00\n{LATIN}"),
        (b"a\r\nb\tc\x1b[0m", "a\r\nb\tc\x1b[0m"),
    ],
)
def test_read_encodings(use: Use, root: Path, data: bytes, text: str) -> None:
    (root / "f").write_bytes(data)
    assert use("read_file", path="f").text == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x89PNG\r\n\x1a\n....", "f is a PNG image of 12 B, not text"),
        (b"%PDF-1.7" + b"x" * 2000, "f is a PDF document of 2.0 kB, not text"),
        (b"PK\x03\x04" + bytes(3_000_000), "f is a zip archive (or an office document) of 3.0 MB"),
        (b"abc\0def", "f is a binary file of 7 B, not text"),
        (bytes(range(256)), "f is a binary file of 256 B, not text"),
    ],
)
def test_read_refuses_what_is_not_text(use: Use, root: Path, data: bytes, message: str) -> None:
    (root / "f").write_bytes(data)
    with pytest.raises(ToolError) as caught:
        use("read_file", path="f")
    assert message in str(caught.value)


@pytest.mark.parametrize("character", ["x", "中", "😀"])
def test_read_says_what_it_leaves_out(use: Use, root: Path, character: str) -> None:
    whole = character * 20_000
    (root / "f").write_text(whole)
    assert use("read_file", path="f").text == whole
    (root / "f").write_text(whole + "y" * 80_000)
    text, note = use("read_file", path="f").text.split("\n")
    assert text == whole
    assert note.startswith("[only the first 20000 characters of ") and note.endswith(" are shown]")


def test_a_huge_file_is_not_read_whole(use: Use, root: Path) -> None:
    with (root / "f").open("wb") as file:
        file.write(b"text\n" * 50_000)
        file.truncate(2**40)  # a hole
    assert "of 1099.5 GB are shown]" in use("read_file", path="f").text


def test_read_errors(use: Use, root: Path) -> None:
    with pytest.raises(ToolError, match="docs is a folder: use list_files"):
        use("read_file", path="docs")
    with pytest.raises(ToolError, match="there is no note.txt in the workspace; is it notes.txt"):
        use("read_file", path="note.txt")
    with pytest.raises(ToolError, match="is outside the workspace"):
        use("read_file", path="/etc/passwd")


def test_read_what_may_not_be_read(use: Use, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(beneath, "open_file", forbidden)
    with pytest.raises(ToolError, match="notes.txt cannot be read: Permission denied"):
        use("read_file", path="notes.txt")


def test_a_file_that_is_gone_between_check_and_use(
    use: Use, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = beneath.open_file

    def late(*arguments: object) -> object:
        (root / "notes.txt").unlink()
        os.mkfifo(root / "notes.txt")
        return opening(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(beneath, "open_file", late)
    with pytest.raises(ToolError, match="notes.txt cannot be read: not a regular file"):
        use("read_file", path="notes.txt")


@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_refused(data: bytes) -> None:
    if file_tools._binary_kind(data) is None:
        text, encoding = file_tools._decoded(data, whole=True)
        assert encoding == "latin-1" or not data or text or data in file_tools._MARKS


# --- write_file ---------------------------------------------------------------------------------


def test_write_makes_folders_and_can_be_undone(use: Use, root: Path) -> None:
    output = use("write_file", path="new/deep/报告.txt", text="héllo\r\n")
    assert output.text == "wrote new/deep/报告.txt (8 B)"
    assert output.files == ("new/deep/报告.txt",)
    assert output.sources == frozenset()
    assert (root / "new/deep/报告.txt").read_bytes() == "héllo\r\n".encode()
    assert use("write_file", path="notes.txt", text="").text == "replaced notes.txt (0 B)"
    workspace = Workspace(root)
    assert [step.label for step in workspace.history()] == [
        "write_file new/deep/报告.txt",
        "write_file notes.txt",
    ]
    workspace.undo()
    workspace.undo()
    assert (root / "notes.txt").read_text() == "first line\nsecond Line\n"
    assert not (root / "new").exists()


def test_write_the_same_again_changes_nothing(use: Use) -> None:
    text = use("read_file", path="notes.txt").text
    output = use("write_file", path="notes.txt", text=text)
    assert output.files == ()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("docs", "docs is a folder: name a file in it"),
        ("new/", "new is a folder: name a file in it"),
        (".", ". is a folder"),
        ("notes.txt/x", "notes.txt/x cannot be written: Not a directory"),
        ("../x", "../x is outside the workspace"),
        ("/etc/x", "/etc/x is outside the workspace"),
        ("out/x", "out/x is outside the workspace"),
        ("pipe", "pipe is a named pipe"),
    ],
)
def test_write_errors_change_nothing(
    use: Use, root: Path, tmp_path: Path, path: str, message: str
) -> None:
    (root / "out").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    before = sorted(os.listdir(root)), sorted(os.listdir(tmp_path))
    with pytest.raises(ToolError) as caught:
        use("write_file", path=path, text="x")
    assert message in str(caught.value)
    assert (sorted(os.listdir(root)), set(os.listdir(tmp_path)) - {"home"}) == (
        before[0],
        set(before[1]) - {"home"},
    )


def test_write_has_a_size_limit(use: Use, root: Path) -> None:
    with pytest.raises(ToolError, match="the text is 4.2 MB; one file may have 4.2 MB"):
        use("write_file", path="f", text="x" * (4 * 2**20 + 1))
    assert not (root / "f").exists()


def test_write_on_a_full_disk(use: Use, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    @contextmanager
    def replacing(*_: object) -> Iterator[Full]:
        yield Full()

    monkeypatch.setattr(beneath, "replacing", replacing)
    with pytest.raises(TriviumError, match="no space left on the disk while writing .*notes.txt"):
        use("write_file", path="notes.txt", text="x")
    assert (root / "notes.txt").read_text() == "first line\nsecond Line\n"


def test_where_only_outputs_may_be_written(root: Path) -> None:
    _, write, _, _ = file_tools.file_tools(Workspace(root, max_files=1))
    with pytest.raises(ToolError, match="only outputs/ may be written here: use outputs/docs/x"):
        write.function(path="docs/x", text="x")
    output = write.function(path="outputs/x", text="x")
    assert isinstance(output, ToolOutput) and output.files == ("outputs/x",)


# --- list_files ---------------------------------------------------------------------------------


def test_list(use: Use, root: Path, tmp_path: Path) -> None:
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("secret")
    (root / ".env").write_text("x" * 2345)
    (root / "in").symlink_to("notes.txt")
    (root / "out").symlink_to(tmp_path)
    (root / "bad\nname\u202e").write_text("")
    os.close(os.open(os.fsencode(root) + b"/\xff", os.O_CREAT))
    os.mkfifo(root / "pipe")
    output = use("list_files")
    assert output.text.splitlines() == [
        ".env (2.3 kB)",
        ".git/ (hidden folder, not listed)",
        "bad⟨U+000A⟩name⟨U+202E⟩ (0 B)",
        "docs/",
        "docs/计划.md (24 B)",
        "in (link)",
        "notes.txt (23 B)",
        "out (link out of the workspace, not usable)",
        "pipe (not a file)",
        "⟨U+DCFF⟩ (0 B)",
    ]
    assert output.sources == {"names:."}
    assert use("list_files", path="docs").text == "docs/计划.md (24 B)"
    assert use("list_files", path=".git").text == ".git/config (6 B)"


def test_list_an_empty_folder_and_a_file(use: Use, root: Path) -> None:
    (root / "empty").mkdir()
    output = use("list_files", path="empty")
    assert (output.text, output.sources) == ("[the folder is empty]", frozenset())
    with pytest.raises(ToolError, match="notes.txt is a file: use read_file"):
        use("list_files", path="notes.txt")


def test_list_says_that_there_is_more(use: Use, root: Path) -> None:
    for number in range(300):
        (root / "docs" / f"{number:03}").touch()
    lines = use("list_files").text.splitlines()
    assert len(lines) == 201
    assert "notes.txt (23 B)" in lines  # the top comes first, however full a folder in it is
    assert lines[-1] == "[there is more; only 200 entries are shown: list a folder in it]"


# --- search_files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "lines"),
    [
        ("line", ["notes.txt:1: first line", "notes.txt:2: second Line"]),
        ("SECOND", ["notes.txt:2: second Line"]),
        ("f*t*line", ["notes.txt:1: first line"]),
        ("预算", ["docs/计划.md:2: 预算 100 万"]),
        ("notes", ["notes.txt: (the file's name)"]),
        ("*.MD", ["docs/计划.md: (the file's name)"]),
        ("(.*", ["[nothing found for '(.*', as plain text with * for anything]"]),
        ("line*first", ["[nothing found for 'line*first', as plain text with * for anything]"]),
    ],
)
def test_search(use: Use, pattern: str, lines: list[str]) -> None:
    assert use("search_files", pattern=pattern).text.splitlines() == lines


def test_search_says_whose_text_it_is(use: Use) -> None:
    assert use("search_files", pattern="i").sources == {"file:notes.txt"}
    assert use("search_files", pattern="100").sources == {"file:docs/计划.md"}
    assert use("search_files", pattern="notes").sources == {"names:."}
    assert use("search_files", pattern="nothing").sources == frozenset()


def test_search_one_file_or_folder(use: Use) -> None:
    assert "first" in use("search_files", pattern="line", path="notes.txt").text
    assert "nothing found" in use("search_files", pattern="line", path="docs").text
    with pytest.raises(ToolError, match="there is no nowhere"):
        use("search_files", pattern="line", path="nowhere")
    for empty in ("", "*", "**"):
        with pytest.raises(ToolError, match="the pattern is empty"):
            use("search_files", pattern=empty)


def test_search_limits_are_stated(use: Use, root: Path) -> None:
    (root / "many.txt").write_text("needle " + "x" * 1000 + "\n" + "a needle\n" * 100)
    (root / "picture.png").write_bytes(b"\x89PNG needle")
    (root / "wide.txt").write_bytes("needle".encode("utf-16"))
    lines = use("search_files", pattern="needle").text.splitlines()
    assert len([line for line in lines if not line.startswith("[")]) == 50
    assert max(map(len, lines)) < 300
    assert "[there is more; only the first 50 matches are shown]" in lines
    (root / "many.txt").unlink()
    lines = use("search_files", pattern="needle").text.splitlines()
    assert lines == [
        "wide.txt:1: needle",
        "[1 files skipped: not text, too large or not readable]",
    ]


def test_search_stops_in_a_folder_of_too_many_files(
    use: Use, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_tools, "_SEARCH_FILES", 10)
    for number in range(20):
        (root / f"f{number:02}").write_text("x")
    text = use("search_files", pattern="needle").text
    assert "[not all files were searched, there are too many: name a folder or a file]" in text


def test_a_pattern_cannot_explode(use: Use, root: Path) -> None:
    (root / "f").write_text("a" * 100_000 + "\n")
    start = time.monotonic()
    use("search_files", pattern="a*" * 2000 + "b")
    use("search_files", pattern="(a+)+$")
    assert time.monotonic() - start < 10  # 0.01 s; as a regular expression, for ever


@given(st.text(alphabet="ab*", max_size=8), st.text(alphabet="abc", max_size=12))
def test_the_star_means_anything(pattern: str, line: str) -> None:
    import re

    expected = re.search(".*".join(map(re.escape, pattern.split("*"))), line)
    assert file_tools._matcher(pattern)(line) == bool(expected)
