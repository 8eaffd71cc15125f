"""Tools for the files of the workspace: read, write, list, search.

What comes out of a file was written by somebody, so it carries the source `file:<path>`; names of
files carry `names:<folder>`. Whatever is left out is said in a last line in brackets.
"""

import codecs
import errno
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from trivium.errors import TriviumError
from trivium.llmos import beneath
from trivium.llmos.confirmation import visible
from trivium.llmos.tools import Tool, ToolError, ToolOutput, tool
from trivium.llmos.workspace import Workspace

_READ_CHARACTERS = 20_000
_WRITE_BYTES = 4 * 2**20
_LISTED = 200
_MATCHES = 50
_LINE = 200  # characters shown of a matching line
_SEARCH_FILE_BYTES = 4 * 2**20
_SEARCH_BYTES = 64 * 2**20
_SEARCH_FILES = 5_000

_MAGIC = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive (or an office document)",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7-zip archive",
    b"\x7fELF": "a program",
    b"SQLite format 3": "an SQLite database",
    b"RIFF": "a sound, video or WebP file",
    b"ID3": "an MP3 sound",
    b"OggS": "an Ogg sound",
    b"fLaC": "a FLAC sound",
    b"GGUF": "a GGUF model",
}
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16: its mark begins with the other's
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# Bytes that text of any 8-bit encoding has no use for.
_NOT_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def _size(count: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _binary_kind(data: bytes) -> str | None:
    """What the beginning of a file shows it to be, or None for text."""
    for magic, kind in _MAGIC.items():
        if data.startswith(magic):
            return kind
    if data.startswith(tuple(_MARKS)):
        return None
    return "a binary file" if _NOT_TEXT.search(data[:8192]) else None


def _decoded(data: bytes, *, whole: bool) -> tuple[str, str]:
    """The text and its encoding. With `whole` false, a character cut at the end is left off."""
    encoding, mark = "utf-8", b""
    for start, name in _MARKS.items():
        if data.startswith(start):
            encoding, mark = name, start
            break
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data[len(mark) :], whole), encoding
    except UnicodeDecodeError:
        return data.decode("latin-1"), "latin-1"


def _opened(workspace: Workspace, real: Path) -> BinaryIO:
    try:
        return beneath.open_file(workspace.root, workspace.parts(real))
    except OSError as error:
        shown = visible(workspace.relative(real))
        raise ToolError(f"{shown} cannot be read: {error.strerror or error}") from error


def _with_notes(text: str, notes: Sequence[str]) -> str:
    return "\n".join(([text] if text else []) + [f"[{note}]" for note in notes])


def _read(workspace: Workspace, path: str) -> ToolOutput:
    real = workspace.resolve(path)
    shown = workspace.relative(real)
    if real.is_dir():
        raise ToolError(f"{visible(shown)} is a folder: use list_files to see what is in it")
    with _opened(workspace, real) as file:
        data = file.read(4 * _READ_CHARACTERS + 4)
        size = max(os.fstat(file.fileno()).st_size, len(data))
    kind = _binary_kind(data)
    if kind is not None:
        raise ToolError(f"{visible(shown)} is {kind} of {_size(size)}, not text")
    text, encoding = _decoded(data, whole=len(data) == size)
    notes = []
    if encoding == "latin-1":
        notes.append("not UTF-8, read as Latin-1: letters other than a-z may be wrong")
    if len(text) > _READ_CHARACTERS or len(data) < size:
        text = text[:_READ_CHARACTERS]
        notes.append(f"only the first {len(text)} characters of {_size(size)} are shown")
    if not data:
        notes.append("the file is empty")
    return ToolOutput(_with_notes(text, notes), sources=frozenset({f"file:{visible(shown)}"}))


def _write(workspace: Workspace, path: str, text: str) -> ToolOutput:
    real = workspace.resolve(path, must_exist=False)
    shown = workspace.relative(real)
    data = text.encode()
    if len(data) > _WRITE_BYTES:
        raise ToolError(f"the text is {_size(len(data))}; one file may have {_size(_WRITE_BYTES)}")
    if real.is_dir() or path.endswith("/"):
        raise ToolError(f"{visible(shown)} is a folder: name a file in it")
    if not real.is_relative_to(workspace.writable):
        below = workspace.relative(workspace.writable)
        raise ToolError(f"only {below}/ may be written here: use {below}/{visible(shown)}")
    replaced = real.exists()
    with workspace.recording(f"write_file {visible(shown)}") as change:
        try:
            with beneath.replacing(workspace.root, workspace.parts(real)) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise TriviumError(f"no space left on the disk while writing {real}") from error
            reason = os.strerror(error.errno or errno.EIO)
            raise ToolError(f"{visible(shown)} cannot be written: {reason}") from error
    verb = "replaced" if replaced else "wrote"
    return ToolOutput(f"{verb} {visible(shown)} ({_size(len(data))})", change.files)


def _list(workspace: Workspace, path: str) -> ToolOutput:
    real = workspace.resolve(path)
    if not real.is_dir():
        raise ToolError(f"{visible(workspace.relative(real))} is a file: use read_file to see it")
    found = list(workspace.walk(real, _LISTED + 1))
    lines = [
        _listed_line(workspace, name, status)
        for name, status in sorted(found[:_LISTED], key=lambda pair: pair[0].split("/"))
    ]
    notes = []
    if not found:
        notes.append("the folder is empty")
    if len(found) > _LISTED:
        notes.append(f"there is more; only {_LISTED} entries are shown: list a folder in it")
    sources = frozenset({f"names:{visible(workspace.relative(real))}"}) if found else frozenset()
    return ToolOutput(_with_notes("\n".join(lines), notes), sources=sources)


def _listed_line(workspace: Workspace, path: str, status: os.stat_result) -> str:
    shown = visible(path)
    if stat.S_ISDIR(status.st_mode):
        hidden = path.rpartition("/")[2].startswith(".")
        return f"{shown}/" + (" (hidden folder, not listed)" if hidden else "")
    if stat.S_ISLNK(status.st_mode):
        inside = (workspace.root / path).resolve().is_relative_to(workspace.root)
        return f"{shown} (link{'' if inside else ' out of the workspace, not usable'})"
    if not stat.S_ISREG(status.st_mode):
        return f"{shown} (not a file)"
    return f"{shown} ({_size(status.st_size)})"


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a line holds the pieces between the stars, in order, in either case.

    Taking the first place of each piece is enough, so the time is linear in the line: a pattern of
    the model can never explode as a regular expression can.
    """
    pieces = [piece.casefold() for piece in pattern.split("*") if piece]

    def matches(line: str) -> bool:
        folded, position = line.casefold(), 0
        for piece in pieces:
            position = folded.find(piece, position)
            if position < 0:
                return False
            position += len(piece)
        return True

    return matches


@dataclass
class _Search:
    """Lines found so far, who wrote them, and what was left out."""

    lines: list[str] = field(default_factory=list)
    sources: set[str] = field(default_factory=set)
    skipped: int = 0
    read: int = 0

    def file(self, workspace: Workspace, path: str, matches: Callable[[str], bool]) -> None:
        shown = visible(path)
        if matches(path.rpartition("/")[2]):
            self.lines.append(f"{shown}: (the file's name)")
            self.sources.add("names:.")
        try:
            file = beneath.open_file(workspace.root, path.split("/"))
        except OSError:
            self.skipped += 1
            return
        with file:
            data = file.read(_SEARCH_FILE_BYTES + 1)
        self.read += len(data)
        if len(data) > _SEARCH_FILE_BYTES or _binary_kind(data) is not None:
            self.skipped += 1
            return
        for number, line in enumerate(_decoded(data, whole=True)[0].splitlines(), start=1):
            if matches(line):
                self.lines.append(f"{shown}:{number}: {line.strip().expandtabs(4)[:_LINE]}")
                self.sources.add(f"file:{shown}")
                if self.is_full():
                    return

    def is_full(self) -> bool:
        return len(self.lines) > _MATCHES


def _search(workspace: Workspace, pattern: str, path: str) -> ToolOutput:
    if not pattern.strip("*"):
        raise ToolError("the pattern is empty: give the text to look for")
    real, matches, search = workspace.resolve(path), _matcher(pattern), _Search()
    partly = False
    if real.is_file():
        search.file(workspace, workspace.relative(real), matches)
    else:
        for count, (name, status) in enumerate(workspace.walk(real, _SEARCH_FILES)):
            if stat.S_ISREG(status.st_mode):
                search.file(workspace, name, matches)
            partly = search.read > _SEARCH_BYTES or count + 1 == _SEARCH_FILES
            if partly or search.is_full():
                break
    notes = []
    if not search.lines:
        notes.append(f"nothing found for {visible(pattern)!r}, as plain text with * for anything")
    if search.is_full():
        notes.append(f"there is more; only the first {_MATCHES} matches are shown")
    elif partly:
        notes.append("not all files were searched, there are too many: name a folder or a file")
    if search.skipped:
        notes.append(f"{search.skipped} files skipped: not text, too large or not readable")
    text = _with_notes("\n".join(search.lines[:_MATCHES]), notes)
    return ToolOutput(text, sources=frozenset(search.sources))


def file_tools(workspace: Workspace) -> tuple[Tool, ...]:
    """The tools for the files of one workspace."""

    @tool(effect="read")
    def read_file(path: str) -> ToolOutput:
        """Read a text file of the workspace.

        path: the file, relative to the workspace, such as notes.txt
        """
        return _read(workspace, path)

    @tool(effect="write")
    def write_file(path: str, text: str) -> ToolOutput:
        """Write a text file in the workspace; what the file held before is replaced.

        path: the file, relative to the workspace; folders on the way are made
        text: the whole new content of the file
        """
        return _write(workspace, path, text)

    @tool(effect="read")
    def list_files(path: str = ".") -> ToolOutput:
        """List the files and folders of the workspace, with their sizes.

        path: the folder to list, relative to the workspace
        """
        return _list(workspace, path)

    @tool(effect="read")
    def search_files(pattern: str, path: str = ".") -> ToolOutput:
        """Find text in the files of the workspace; gives path:line: text. Also finds file names.

        pattern: the text to look for, in either case; * stands for anything
        path: the file or folder to search, relative to the workspace
        """
        return _search(workspace, pattern, path)

    return read_file, write_file, list_files, search_files
