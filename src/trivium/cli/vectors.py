"""Files of vectors: .npy, .npz or .jsonl, written row by row, so that a long run can go on.

Rows go into a hidden file beside the wanted one, whose name holds a hash of all that decides what
the rows are. The same command finds it again, and goes on behind its last whole row. When all rows
are there, the file gets its name.
"""

import fcntl
import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from trivium import files
from trivium.errors import NotFound, Refused, UsageError

if TYPE_CHECKING:
    import numpy as np

ENDINGS = (".npy", ".npz", ".jsonl")
MEMBER = "vectors"  # the array in an .npz


def json_row(index: int, text: str, vector: "np.ndarray") -> str:
    """One line of JSON; each number is the shortest that reads back as the same float32."""
    numbers = ", ".join(map(str, vector))
    return f'{{"index": {index}, "text": {json.dumps(text, ensure_ascii=False)}, ' + (
        f'"embedding": [{numbers}]}}\n'
    )


class VectorFile:
    """Rows of `width` numbers on their way into `path`. `identity` is JSON that tells apart what
    must not be mixed; None for rows that cannot be asked for again (stdin). `rows`: written so far.
    """

    def __init__(self, path: Path, width: int, identity: Any) -> None:
        self.path, self._width, self._resumable = path, width, identity is not None
        mark = hashlib.sha256(json.dumps([identity, width]).encode()).hexdigest()[:12]
        self.partial = path.with_name(f".{path.name}.{mark if identity else os.getpid()}.partial")
        self.rows = 0

    def __enter__(self) -> "VectorFile":
        with files.writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self.partial.open("a+b")
            if not _lock(self._file):
                self._file.close()
                raise Refused(f"another process is writing {self.path}")
            self._keep_whole_rows()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self._resumable:
            self.partial.unlink(missing_ok=True)

    def append(self, texts: Sequence[str], vectors: "np.ndarray") -> None:
        """Add rows, float32 (N, width), and flush them to the disk."""
        if self.path.suffix == ".jsonl":
            rows = zip(texts, vectors, strict=True)
            lines = (json_row(self.rows + i, text, row) for i, (text, row) in enumerate(rows))
            data = "".join(lines).encode()
        else:
            data = vectors.astype("<f4").tobytes()
        with files.writing(self.path):
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        self.rows += len(vectors)

    def finish(self) -> None:
        """Give the file its name."""
        with files.writing(self.path):
            if self.path.suffix != ".jsonl":
                with self.partial.open("r+b") as file:
                    file.write(_header(self.rows, self._width))
                    os.fsync(file.fileno())
            done = self.partial
            if self.path.suffix == ".npz":
                done = self.partial.with_suffix(".npz")
                try:
                    with zipfile.ZipFile(done, "w") as archive:
                        archive.write(self.partial, f"{MEMBER}.npy")
                    done.replace(self.path)
                finally:
                    done.unlink(missing_ok=True)
                self.partial.unlink()
            else:
                done.replace(self.path)
            self._forget_others()

    def _keep_whole_rows(self) -> None:
        """Count the rows that an earlier run left, and cut off one that was not finished."""
        file, size = self._file, self._file.seek(0, os.SEEK_END)
        if self.path.suffix == ".jsonl":
            end = 0
            file.seek(0)
            while block := file.read(1 << 20):
                self.rows += block.count(b"\n")
                if b"\n" in block:
                    end = file.tell() - len(block) + block.rindex(b"\n") + 1
        else:
            header = _header(0, self._width)
            if size < len(header):
                file.truncate(0)
                file.write(header)
                size = len(header)
            self.rows, _ = divmod(size - len(header), 4 * self._width)
            end = len(header) + self.rows * 4 * self._width
        file.truncate(end)

    def _forget_others(self) -> None:
        """Delete what runs with other settings left unfinished, unless they still run."""
        for path in self.path.parent.glob(f".{self.path.name}.*.partial"):
            with path.open("ab") as file:
                if _lock(file):
                    path.unlink()


def _header(rows: int, width: int) -> bytes:
    """The beginning of an .npy file: always the same length, so that it can be written last."""
    from io import BytesIO

    from numpy.lib import format

    buffer = BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    format.write_array_header_1_0(buffer, shape)
    return buffer.getvalue()


def _lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_vectors(path: Path) -> "np.ndarray":
    """The rows of an .npy file, memory-mapped, or of an .npz. Raises NotFound and UsageError."""
    import numpy as np

    try:
        found = np.load(path, mmap_mode="r")
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                found = found[MEMBER]
    except FileNotFoundError:
        raise NotFound(f"no such file: {path}") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0][:200]
        raise UsageError(f"{path} is no .npy or .npz file of vectors ({reason})") from None
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != "f":
        raise UsageError(f"{path} does not hold rows of numbers, one for each text")
    return found
