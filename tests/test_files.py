"""Files are written whole or not at all, and seen by whom they are for."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trivium.errors import TriviumError
from trivium.files import write_atomic


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.parametrize(("private", "mode"), [(False, 0o640), (True, 0o600)])
def test_who_may_read(private: bool, mode: int, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomic(path, "text", private=private)
    assert path.read_text() == "text"
    assert path.stat().st_mode & 0o777 == mode


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(TriviumError, match="cannot write"):
        write_atomic(tmp_path / "folder", b"new")  # a folder is in the way
    with pytest.raises(TriviumError, match="cannot write"):
        write_atomic(path / "beneath", b"new")
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]  # no half file
