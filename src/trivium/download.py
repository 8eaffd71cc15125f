"""Move one large file to the disk: with progress, resume, checksum, and a clear error otherwise.

A transfer goes to `FILE.part`, which survives Ctrl-C and broken connections; the next attempt asks
for the rest (RFC 9110, section 14: range requests). The file gets its name only when its SHA-256 is
the expected one.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from trivium.errors import TriviumError
from trivium.files import writing

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int | None], None]  # bytes done, bytes in all where that is known

CHUNK = 1 << 20
ATTEMPTS = 5  # without a new byte; any progress starts the count again
FIRST_PAUSE = 0.5  # seconds; doubles with each attempt
TIMEOUT = 30.0  # seconds without an answer or a byte


class Declined(TriviumError):
    """The server does not serve us: it wants credentials, or a proxy or certificate we lack."""


def nothing(done: int, total: int | None) -> None:
    """Progress that nobody looks at."""


def fetch(url: str, target: Path, *, sha256: str, size: int, progress: Progress = nothing) -> None:
    """Bring the `size` bytes at an http(s) `url` to `target`, going on from `target`.part.

    Raises Declined when the server refuses us, TriviumError for every other failure. The partial
    file is kept for the next attempt unless its content is wrong.
    """
    import httpx

    partial = partial_of(target)
    failures = 0
    with writing(partial), _client() as client:
        partial.parent.mkdir(parents=True, exist_ok=True)
        while (start := size_of(partial)) != size:
            try:
                _transfer(client, url, partial, size, progress)
                reason = "the connection closed early"
            except httpx.RequestError as error:
                reason = str(error) or type(error).__name__
                if isinstance(error, httpx.ConnectError | httpx.ProxyError) and start == 0:
                    raise Declined(f"cannot reach {host_of(url)}: {reason}") from error
            failures = 0 if size_of(partial) > start else failures + 1
            if failures >= ATTEMPTS:
                raise TriviumError(
                    f"{host_of(url)} sent {format_size(size_of(partial))} of {format_size(size)}, "
                    f"then nothing in {ATTEMPTS} attempts ({reason}): try again to go on from there"
                )
            if failures:
                time.sleep(FIRST_PAUSE * 2 ** (failures - 1))
    verify(partial, sha256, remove=True)
    with writing(target):
        os.replace(partial, target)


def _client() -> "httpx.Client":
    import httpx

    try:
        return httpx.Client(follow_redirects=True, timeout=TIMEOUT)
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
        # SSL_CERT_FILE or HTTPS_PROXY hold what httpx cannot use.
        raise Declined(f"the certificates or proxies of the environment: {error}") from error


def _transfer(
    client: "httpx.Client", url: str, partial: Path, size: int, progress: Progress
) -> None:
    """One request. Returns when the body ends, which may be too early."""
    start = size_of(partial)
    if start > size:
        partial.unlink()
        start = 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with client.stream("GET", url, headers=headers) as response:
        _check_status(response.status_code, url)
        ranges = response.headers.get("Content-Range", "")
        if response.status_code == 200:
            start = 0  # the server ignores ranges: everything again
        elif response.status_code == 416 or (
            response.status_code == 206 and not ranges.startswith(f"bytes {start}-")
        ):
            partial.unlink(missing_ok=True)  # our part is not a part of what the server has
            return
        elif response.status_code != 206:
            return  # overloaded or broken: try again
        length = response.headers.get("Content-Length")
        if length is not None and start + int(length) != size:
            raise TriviumError(
                f"{host_of(url)} offers {start + int(length)} bytes instead of {size}: "
                "not the file that was published (a log-in page, perhaps)"
            )
        with partial.open("ab" if start else "wb") as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                start += len(chunk)
                progress(start, size)
                if start > size:
                    break
    if start > size:
        partial.unlink()
        raise TriviumError(f"{host_of(url)} sends more than the {size} bytes that were published")


def _check_status(status: int, url: str) -> None:
    if status in (401, 403, 407):
        raise Declined(f"{host_of(url)} refuses the download (HTTP {status})")
    if status not in (200, 206, 408, 416, 429) and status < 500:
        raise TriviumError(f"{host_of(url)} does not have the file (HTTP {status}): {url}")


def verify(path: Path, sha256: str, *, remove: bool = False) -> None:
    """Raise TriviumError unless `path` has this SHA-256; `remove` then deletes it."""
    found = digest(path)
    if found == sha256:
        return
    if remove:
        path.unlink()
    raise TriviumError(
        f"{path.name} is not what was published: its SHA-256 is {found}, expected {sha256}"
        + ("; deleted, pull again" if remove else "")
    )


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy(source: BinaryIO, target: Path, *, sha256: str, size: int) -> None:
    """Write `source` to `target`, which appears only if these are the right `size` bytes."""
    partial = partial_of(target)
    with writing(partial):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                while file.tell() <= size and (chunk := source.read(CHUNK)):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            verify(partial, sha256)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def require_space(folder: Path, needed: int) -> None:
    """Raise TriviumError unless the disk that holds `folder` has `needed` bytes free."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise TriviumError(
            f"{format_size(needed)} are needed in {folder} and {format_size(free)} are free: "
            "free some, or set TRIVIUM_HOME to a folder on another disk"
        )


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`; while another process does, call `waiting` again and again."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(0.2)
        yield


def partial_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def size_of(path: Path) -> int:
    """Bytes of a file, 0 when there is none."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def host_of(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).hostname or url


def format_size(count: float) -> str:
    """Bytes as a person reads them: decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
