"""Hugging Face repositories: names, the shared cache, and fetching from a hub that runs here."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trivium import huggingface
from trivium.errors import NotFound, TriviumError, UsageError
from trivium.huggingface import Reference

COMMIT = "c0ffee" * 6 + "beef"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


def put(cache: Path, repo: str, *names: str, commit: str = COMMIT, index: str = "") -> Path:
    folder = cache / ("models--" + repo.replace("/", "--"))
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in names:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_text("{}")
    if index:
        (snapshot / "model.safetensors.index.json").write_text(index)
    return snapshot


@pytest.mark.parametrize(
    "name, expected",
    [
        ("org/name", Reference("org/name")),
        ("org/name@v1.0", Reference("org/name", "v1.0")),
        ("org/name@refs/pr/1", Reference("org/name", "refs/pr/1")),
        ("org/na.me:Q4_K_M", Reference("org/na.me", quant="Q4_K_M")),
        ("org/name:Q8_0@dev", Reference("org/name", "dev", quant="Q8_0")),
        ("org/name/a/b.gguf", Reference("org/name", file="a/b.gguf")),
        ("org/name/b.gguf@dev", Reference("org/name", "dev", file="b.gguf")),
        ("name", None),
        ("", None),
        ("/etc/passwd", None),
        ("../up", None),
        ("org/..", None),
        ("org/name/../../x.gguf", None),
        ("org/name@../../x", None),
        ("org/name/pytorch_model.bin", None),
        ("org/name\n", None),
        ("C:/x y", None),
        ("a" * 100_000, None),
        ("https://host/org/name", None),
    ],
)
def test_names(name: str, expected: Reference | None) -> None:
    assert huggingface.parse(name) == expected


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "own"))
    assert huggingface.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("HF_HUB_CACHE")
    assert huggingface.cache_folder() == tmp_path / "hf" / "hub"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert huggingface.cache_folder() == tmp_path / "xdg" / "huggingface" / "hub"


@pytest.mark.parametrize(
    "names, index, whole",
    [
        (("config.json", "model.safetensors"), "", True),
        (("config.json",), "", False),
        (("config.json", "pytorch_model.bin"), "", False),
        (("config.json", "a.safetensors"), '{"weight_map": {"x": "a.safetensors"}}', True),
        (("config.json", "a.safetensors"), '{"weight_map": {"x"', False),
        (("config.json", "a.safetensors"), "[]", False),
        (("config.json", "a.safetensors"), '{"weight_map": {"x": 7}}', False),
        (
            ("config.json", "a.safetensors"),
            '{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}',
            False,
        ),
    ],
)
def test_a_folder_counts_when_it_is_whole(
    cache: Path, names: tuple[str, ...], index: str, whole: bool
) -> None:
    snapshot = put(cache, "org/name", *names, index=index)
    assert huggingface.find(Reference("org/name")) == (snapshot if whole else None)
    assert huggingface.find(Reference("org/name", COMMIT)) == (snapshot if whole else None)
    assert huggingface.find(Reference("org/name", "other")) is None
    assert list(huggingface.cached()) == ([("org/name", snapshot)] if whole else [])


def test_gguf_files(cache: Path) -> None:
    snapshot = put(cache, "org/name", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "config.json")
    assert huggingface.find(Reference("org/name", quant="q8_0")) == snapshot / "m-Q8_0.gguf"
    assert huggingface.find(Reference("org/name", file="m-Q8_0.gguf")) == snapshot / "m-Q8_0.gguf"
    assert huggingface.find(Reference("org/name", file="m.gguf")) is None
    (snapshot / "config.json").unlink()
    with pytest.raises(UsageError, match=r"several.*org/name/m-Q4_K_M.gguf, org/name/m-Q8_0.gguf"):
        huggingface.find(Reference("org/name"))
    with pytest.raises(UsageError, match="quantisation Q2_K; choose one: org/name/m-Q4"):
        huggingface.find(Reference("org/name", quant="Q2_K"))
    (snapshot / "m-Q8_0.gguf").unlink()
    assert huggingface.find(Reference("org/name")) == snapshot / "m-Q4_K_M.gguf"


@pytest.mark.parametrize("variable", ["", "HF_HUB_OFFLINE"])
def test_offline(cache: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(NotFound, match="offline: org/name is not whole"):
        huggingface.pull(Reference("org/name"), offline=not variable)
    snapshot = put(cache, "org/name", "config.json", "model.safetensors")
    assert huggingface.pull(Reference("org/name"), offline=not variable) == snapshot


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"pip install 'trivium\[hub\]'"):
        huggingface.pull(Reference("org/name"))


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as fetching a snapshot takes."""

    repositories: dict[str, dict[str, bytes]] = {}
    fetched: list[str] = []

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/").split("/")
        if path[:2] == ["api", "models"]:
            files = self.repositories.get("/".join(path[2:4]))
            if files is None:
                code = {"gated": "GatedRepo", "norev": "RevisionNotFound"}.get(
                    path[3], "RepoNotFound"
                )
                status = 403 if code == "GatedRepo" else 404
                self.answer(status, b"{}", X_Error_Code=code)
            elif "tree" in path:
                listing = [
                    {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
                    for name, data in files.items()
                ]
                self.answer(200, json.dumps(listing).encode(), Content_Type="application/json")
            else:
                info = {
                    "id": "/".join(path[2:4]),
                    "sha": COMMIT,
                    "siblings": [{"rfilename": name} for name in files],
                }
                self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
            return
        name = "/".join(path[4:])
        data = self.repositories["/".join(path[:2])][name]
        if self.command == "GET":
            self.fetched.append(name)
        self.answer(200, data, ETag=f'"{etag(data)}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("huggingface_hub")
    Hub.fetched.clear()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


PULL = """
import sys
from trivium import hub
from trivium.errors import TriviumError
steps = []
try:
    print(hub.pull(sys.argv[1], progress=lambda *state: steps.append(state)))
    assert all(total is None or done <= total for done, total in steps), steps
except TriviumError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def pull(endpoint: str, name: str) -> subprocess.CompletedProcess[str]:
    # In a process of its own: the library reads its environment when it is imported.
    return subprocess.run(
        [sys.executable, "-c", PULL, name],
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "name, fetched, found",
    [
        (
            "org/model",
            ["config.json", "model.safetensors", "tokenizer.json"],
            "",
        ),
        ("org/ggufs:Q8_0", ["m-Q8_0.gguf"], "m-Q8_0.gguf"),
        ("org/ggufs/m-Q4_0.gguf", ["m-Q4_0.gguf"], "m-Q4_0.gguf"),
    ],
)
def test_pull(
    endpoint: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    fetched: list[str],
    found: str,
) -> None:
    data = {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{} ",
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"a pickle",
        "original/consolidated.safetensors": b"again",
        "modeling_evil.py": b"import os",
    }
    ggufs = {"m-Q4_0.gguf": b"GGUF4", "m-Q8_0.gguf": b"GGUF8", "README.md": b"hello"}
    monkeypatch.setattr(Hub, "repositories", {"org/model": data, "org/ggufs": ggufs})
    done = pull(endpoint, name)
    repo = "--".join(name.replace(":", "/").split("/")[:2])
    expected = cache / f"models--{repo}" / "snapshots" / COMMIT / found
    assert (done.returncode, done.stdout.strip()) == (0, str(expected)), done.stderr
    assert sorted(Hub.fetched) == fetched
    assert not done.stderr


@pytest.mark.parametrize(
    "name, message",
    [
        ("org/missing", "NotFound: no Hugging Face repository org/missing"),
        ("org/gated", "Refused: org/gated wants its terms accepted"),
        ("org/norev@v9", "NotFound: org/norev has no revision v9"),
        ("org/pickles", "UsageError: org/pickles has no safetensors and no GGUF files"),
        ("org/ggufs", "UsageError: org/ggufs has several GGUF files"),
        ("org/ggufs:Q2_K", "UsageError: org/ggufs has no GGUF file of quantisation Q2_K"),
        ("org/ggufs/x.gguf", "NotFound: org/ggufs has no file x.gguf"),
    ],
)
def test_pull_that_fails(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    repositories = {
        "org/pickles": {"pytorch_model.bin": b"a pickle", "config.json": b"{}"},
        "org/ggufs": {"a-Q4_0.gguf": b"GGUF", "b-Q8_0.gguf": b"GGUF"},
    }
    monkeypatch.setattr(Hub, "repositories", repositories)
    done = pull(endpoint, name)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert Hub.fetched == []


def test_pull_from_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def refuse(*arguments: object, **keywords: object) -> None:
        raise ConnectionError("refused\nby the peer")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", refuse)
    with pytest.raises(TriviumError, match=r"cannot fetch org/name \(refused\): try again"):
        huggingface.pull(Reference("org/name"))
