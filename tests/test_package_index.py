"""Wheels found through the real pip, on an index that runs here."""

import base64
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from trivium import download, package_index
from trivium.errors import TriviumError

pytest.importorskip("pip")

NAME = "fake_model-1.0-py3-none-any.whl"


def make_wheel(path: Path, content: bytes) -> str:
    """A wheel that holds one model file; returns its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fake_model/Model.gguf", content)
        archive.writestr("fake_model-1.0.dist-info/METADATA", "Name: fake-model\nVersion: 1.0\n")
        archive.writestr(
            "fake_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Handler(http.server.SimpleHTTPRequestHandler):
    """An index that may want a password, or serve files to pip alone."""

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        token = base64.b64encode(b"user:secret").decode()
        if self.server.password and self.headers.get("Authorization") != f"Basic {token}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif (
            self.server.only_pip
            and self.path.endswith(".whl")
            and not self.headers["User-Agent"].startswith("pip/")
        ):
            self.send_error(403)
        else:
            super().do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(autouse=True)
def pip_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    root = tmp_path / "site"
    folder = root / "simple" / "fake-model"
    sha256 = make_wheel(folder / NAME, b"GGUF" * 100_000)
    page = f'<!DOCTYPE html><a href="{NAME}#sha256={sha256}">{NAME}</a>'
    (folder / "index.html").write_text(page)
    httpd = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: Handler(*arguments, directory=str(root))
    )
    httpd.password, httpd.only_pip, httpd.paths = False, False, []
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    url = f"127.0.0.1:{httpd.server_port}/simple/"
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{url}")
    yield SimpleNamespace(
        httpd=httpd,
        url=url,
        sha256=sha256,
        wheel=folder / NAME,
        size=(folder / NAME).stat().st_size,
    )
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def get(index: SimpleNamespace, folder: Path, **keywords: object) -> Path:
    expected = {"sha256": index.sha256, "size": index.size}
    return package_index.wheel("fake-model", "1.0", folder, **(expected | keywords))


def test_from_the_index_in_one_download(index: SimpleNamespace, tmp_path: Path) -> None:
    seen = []
    path = get(index, tmp_path / "new", progress=lambda *state: seen.append(state))
    assert path == tmp_path / "new" / NAME
    assert path.read_bytes() == index.wheel.read_bytes()
    assert index.httpd.paths == ["/simple/fake-model/", f"/simple/fake-model/{NAME}"]
    assert seen[-1] == (index.size, index.size)


@pytest.mark.parametrize("offline", [False, True])
def test_from_a_local_folder_without_a_copy(
    index: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    house = tmp_path / "wheel house 轮子"
    house.mkdir()
    (house / NAME).write_bytes(index.wheel.read_bytes())
    monkeypatch.setenv("PIP_FIND_LINKS", house.as_uri())
    assert get(index, tmp_path / "new", offline=offline) == house / NAME
    assert not (tmp_path / "new").exists()
    assert not any(path.endswith(".whl") for path in index.httpd.paths)


def test_a_password_in_the_address(
    index: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.httpd.password = True
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@{index.url}")
    folder = tmp_path / "new"
    assert get(index, folder).read_bytes() == index.wheel.read_bytes()
    assert [path.name for path in folder.iterdir()] == [NAME]


def test_a_server_that_serves_only_pip(index: SimpleNamespace, tmp_path: Path) -> None:
    index.httpd.only_pip = True
    seen = []
    path = get(index, tmp_path / "new", progress=lambda *state: seen.append(state))
    assert path.read_bytes() == index.wheel.read_bytes()
    assert all(total == index.size for _, total in seen)


def test_pip_downloads_something_else(index: SimpleNamespace, tmp_path: Path) -> None:
    index.httpd.only_pip = True
    with pytest.raises(TriviumError, match=f"{index.sha256}, expected 0000"):
        get(index, tmp_path / "new", sha256="0" * 64)
    assert not any((tmp_path / "new").iterdir())


def test_a_local_wheel_that_is_wrong_is_not_deleted(
    index: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.wheel.parent))
    with pytest.raises(TriviumError, match="not what was published"):
        get(index, tmp_path / "new", sha256="0" * 64)
    assert index.wheel.exists()


def test_another_version(index: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(TriviumError, match=r"fake-model 2\.0 \(No matching .*--from FILE"):
        package_index.wheel("fake-model", "2.0", tmp_path, sha256=index.sha256, size=index.size)


def test_unknown_package(index: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(TriviumError, match="pip cannot get the wheel unheard-of 1.0") as caught:
        package_index.wheel("unheard-of", "1.0", tmp_path, sha256="", size=1)
    assert "\n" not in str(caught.value)


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(TriviumError, match="refused.*check the network"):
        package_index.wheel("fake-model", "1.0", tmp_path, sha256="", size=1)


def test_offline_uses_no_network(index: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(TriviumError, match="offline: the wheel fake-model 1.0"):
        get(index, tmp_path, offline=True)
    assert index.httpd.paths == []


def test_without_pip(
    index: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TriviumError, match="pip is missing .* ensurepip.*--from FILE"):
        get(index, tmp_path)


def test_a_module_named_pip_in_the_current_folder_is_not_run(
    index: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("open('executed', 'w')")
    monkeypatch.chdir(tmp_path)
    get(index, tmp_path / "new")
    assert not (tmp_path / "executed").exists()


def test_an_index_that_does_not_answer(
    index: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index, "LOOKUP_SECONDS", 0.01)
    with pytest.raises(TriviumError, match="did not answer"):
        get(index, tmp_path)


def test_ctrl_c_ends_pip(index: SimpleNamespace, tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    index.httpd.only_pip = True
    with pytest.raises(KeyboardInterrupt):
        package_index._pip_download(
            "fake-model",
            "1.0",
            tmp_path / "new",
            sha256=index.sha256,
            size=index.size,
            progress=interrupt,
        )
    assert not any((tmp_path / "new").iterdir())


def test_link_lines_of_pip() -> None:
    log = (
        "  Found link https://h/a/fake_model-1.0-py3-none-any.whl#sha256=0a (from https://h/) "
        "(requires-python:>=3.9), version: 1.0\n"
        "  Found link https://h/fake_model-1.0.tar.gz (from https://h/), version: 1.0\n"
        "  Found link file:///w%20h/fake_model-0.9-py3-none-any.whl, version: 0.9\r\n"
    )
    assert package_index.FOUND.findall(log) == [
        ("https://h/a/fake_model-1.0-py3-none-any.whl", "1.0"),
        ("file:///w%20h/fake_model-0.9-py3-none-any.whl", "0.9"),
    ]
    assert download.host_of("https://user:x@h:8/y") == "h"
