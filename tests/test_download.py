"""The transfer against a server that misbehaves in every way we could think of."""

import errno
import hashlib
import http.server
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from trivium import download
from trivium.errors import TriviumError

CONTENT = bytes(range(256)) * 8000  # 2 MB
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; the server's `behave` may answer a request in its own way first."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        if server.behaviours:
            server.behaviours.pop(0)(self)
        else:
            well(self)

    def log_message(self, *arguments: object) -> None:
        pass

    @property
    def start(self) -> int:
        return int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def give_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True


def well(handler: Handler) -> None:
    rest = CONTENT[handler.start :]
    if handler.start:
        span = f"bytes {handler.start}-{SIZE - 1}/{SIZE}"
        handler.head(206, Content_Length=len(rest), Content_Range=span)
    else:
        handler.head(200, Content_Length=len(rest))
    handler.wfile.write(rest)


def cut_after(count: int) -> Callable[[Handler], None]:
    def behave(handler: Handler) -> None:
        rest = CONTENT[handler.start :]
        span = f"bytes {handler.start}-{SIZE - 1}/{SIZE}"
        status = 206 if handler.start else 200
        handler.head(status, Content_Length=len(rest), Content_Range=span)
        handler.wfile.write(rest[:count])
        handler.give_up()

    return behave


def status(code: int) -> Callable[[Handler], None]:
    return lambda handler: handler.head(code, Content_Length=0)


def ignores_range(handler: Handler) -> None:
    handler.head(200, Content_Length=SIZE)
    handler.wfile.write(CONTENT)


def wrong_part(handler: Handler) -> None:
    handler.head(206, Content_Length=10, Content_Range=f"bytes 7-16/{SIZE}")
    handler.wfile.write(CONTENT[:10])


def corrupt(handler: Handler) -> None:
    handler.head(200, Content_Length=SIZE)
    handler.wfile.write(bytes(SIZE))


def log_in_page(handler: Handler) -> None:
    page = b"<html>Welcome to the hotel"
    handler.head(200, Content_Length=len(page))
    handler.wfile.write(page)


def without_length(content: bytes) -> Callable[[Handler], None]:
    def behave(handler: Handler) -> None:
        handler.head(200, Connection="close")
        handler.wfile.write(content)
        handler.give_up()

    return behave


def redirect(handler: Handler) -> None:
    handler.head(302, Location="/elsewhere", Content_Length=0)


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves early is what some tests do."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.0)
    httpd = Server(("127.0.0.1", 0), Handler)
    httpd.behaviours, httpd.ranges = [], []
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    url = f"http://127.0.0.1:{httpd.server_port}/model.bin"
    yield SimpleNamespace(url=url, behaviours=httpd.behaviours, ranges=httpd.ranges)
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def fetch(server: SimpleNamespace, target: Path, **keywords: object) -> None:
    download.fetch(server.url, target, **{"sha256": SHA256, "size": SIZE, **keywords})


def test_a_whole_file(server: SimpleNamespace, tmp_path: Path) -> None:
    target, seen = tmp_path / "new" / "模型 🙂.bin", []
    fetch(server, target, progress=lambda *state: seen.append(state))
    assert target.read_bytes() == CONTENT
    assert seen == sorted(seen) and seen[-1] == (SIZE, SIZE)
    assert list(target.parent.iterdir()) == [target]


def test_goes_on_where_it_stopped(server: SimpleNamespace, tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    download.partial_of(target).write_bytes(CONTENT[:1000])
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


def test_a_complete_part_needs_no_request(server: SimpleNamespace, tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    download.partial_of(target).write_bytes(CONTENT)
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == []


@pytest.mark.parametrize(
    "behaviours, ranges",
    [
        ([ignores_range], ["bytes=1000-"]),
        ([wrong_part], ["bytes=1000-", None]),
        ([status(416)], ["bytes=1000-", None]),
        ([status(500), status(503), status(429)], ["bytes=1000-"] * 4),
        ([cut_after(0), cut_after(500)], ["bytes=1000-", "bytes=1000-", "bytes=1500-"]),
        ([cut_after(100)] * 9, [f"bytes={1000 + 100 * i}-" for i in range(10)]),
        ([redirect], ["bytes=1000-"] * 2),
        ([without_length(CONTENT[:1200])], ["bytes=1000-", "bytes=1200-"]),
    ],
)
def test_recovers(
    server: SimpleNamespace, tmp_path: Path, behaviours: list, ranges: list[str | None]
) -> None:
    target = tmp_path / "model.bin"
    download.partial_of(target).write_bytes(CONTENT[:1000])
    server.behaviours.extend(behaviours)
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ranges


@pytest.mark.parametrize("oversized", [SIZE + 1, 2 * SIZE])
def test_a_part_longer_than_the_file_is_dropped(
    server: SimpleNamespace, tmp_path: Path, oversized: int
) -> None:
    target = tmp_path / "model.bin"
    download.partial_of(target).write_bytes(bytes(oversized))
    fetch(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "behaviour, error, message",
    [
        (status(401), download.Declined, "HTTP 401"),
        (status(403), download.Declined, "HTTP 403"),
        (status(407), download.Declined, "HTTP 407"),
        (status(404), TriviumError, "HTTP 404"),
        (status(410), TriviumError, "HTTP 410"),
        (log_in_page, TriviumError, f"26 bytes instead of {SIZE}"),
        (without_length(CONTENT + b"more"), TriviumError, f"more than the {SIZE} bytes"),
        (corrupt, TriviumError, f"{hashlib.sha256(bytes(SIZE)).hexdigest()}, expected {SHA256}"),
    ],
)
def test_says_what_is_wrong(
    server: SimpleNamespace,
    tmp_path: Path,
    behaviour: Callable[[Handler], None],
    error: type[TriviumError],
    message: str,
) -> None:
    server.behaviours.append(behaviour)
    with pytest.raises(TriviumError, match=message) as caught:
        fetch(server, tmp_path / "model.bin")
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir()), "wrong content must not wait to be resumed"


@pytest.mark.parametrize("behaviour", [cut_after(0), status(500)])
def test_gives_up_and_keeps_the_part(
    server: SimpleNamespace, tmp_path: Path, behaviour: Callable[[Handler], None]
) -> None:
    target = tmp_path / "model.bin"
    server.behaviours.extend([cut_after(1000), *[behaviour] * download.ATTEMPTS])
    with pytest.raises(TriviumError, match=r"1 kB of 2.05 MB.*try again"):
        fetch(server, target)
    assert not target.exists()
    assert download.partial_of(target).read_bytes() == CONTENT[:1000]
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_silence_ends(
    server: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    done = threading.Event()

    def silent(handler: Handler) -> None:
        done.wait(10)
        handler.give_up()

    server.behaviours.extend([silent] * download.ATTEMPTS)
    with pytest.raises(TriviumError, match="timed out"):
        fetch(server, tmp_path / "model.bin")
    done.set()


def test_ctrl_c_keeps_the_part(server: SimpleNamespace, tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    target = tmp_path / "model.bin"
    with pytest.raises(KeyboardInterrupt):
        fetch(server, target, progress=interrupt)
    part = download.partial_of(target).read_bytes()
    assert part and CONTENT.startswith(part)
    assert not target.exists()


@pytest.mark.parametrize(
    "variable, value", [("SSL_CERT_FILE", os.devnull), ("HTTP_PROXY", "nonsense://h:x")]
)
def test_a_broken_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(download.Declined, match="certificates or proxies of the environment"):
        download.fetch("https://h/m", tmp_path / "m", sha256=SHA256, size=SIZE)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(download.Declined, match="cannot reach 127.0.0.1"):
        download.fetch("http://127.0.0.1:9/m", tmp_path / "m", sha256=SHA256, size=SIZE)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(server: SimpleNamespace, tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    download.partial_of(target).symlink_to("/dev/full")
    with pytest.raises(TriviumError, match="no space left"):
        fetch(server, target)
    with pytest.raises(TriviumError, match="no space left"):
        download.copy(io.BytesIO(CONTENT), target, sha256=SHA256, size=SIZE)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"x", bytes(SIZE), CONTENT * 2])
def test_copy_leaves_nothing_wrong(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(TriviumError, match=SHA256):
        download.copy(io.BytesIO(content), tmp_path / "m", sha256=SHA256, size=SIZE)
    assert not any(tmp_path.iterdir())


def test_copy(tmp_path: Path) -> None:
    download.copy(io.BytesIO(CONTENT), tmp_path / "a" / "m", sha256=SHA256, size=SIZE)
    assert (tmp_path / "a" / "m").read_bytes() == CONTENT


def test_space_is_checked_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    download.require_space(tmp_path / "not" / "there", 5_000_000)
    with pytest.raises(TriviumError, match=r"5.1 MB are needed .* 5 MB are free"):
        download.require_space(tmp_path / "not" / "there", 5_100_000)


def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    lock, waits, order = tmp_path / "a" / "lock", threading.Event(), []

    def second() -> None:
        with download.locked(lock, waits.set):
            order.append("second")

    with download.locked(lock, pytest.fail):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(TriviumError, match="cannot write .*Read-only"):
            download.locked(tmp_path / "lock", lambda: None).__enter__()


@pytest.mark.parametrize(
    "count, text",
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (98_362_432, "98.4 MB"),
        (999_700, "1 MB"),
        (5e9, "5 GB"),
        (7.25e12, "7.25 TB"),
    ],
)
def test_sizes_read_well(count: float, text: str) -> None:
    assert download.format_size(count) == text
