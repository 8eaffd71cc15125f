"""`doctor` on machines where things are missing or broken."""

import http.server
import importlib.metadata
import json
import re
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from trivium import cli, hub
from trivium.cli import doctor
from trivium.llmos import sandbox

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine with everything, light to examine; call it with what is missing."""
    for name in ("MODEL", "OFFLINE", "DEBUG"):
        monkeypatch.delenv(f"TRIVIUM_{name}", raising=False)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    model = tmp_path / "model.gguf"
    model.touch()
    monkeypatch.setattr(hub, "find", lambda name: model)
    level = SimpleNamespace(usable=True, summary="Landlock, seccomp")
    monkeypatch.setattr(sandbox, "probe", lambda: level)
    versions = {name: "1.0" for extra in doctor.EXTRAS.values() for name in extra}
    torch = ModuleType("torch")
    torch.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    torch.version = SimpleNamespace(cuda=None, hip=None)
    torch.cuda = SimpleNamespace(device_count=lambda: 0)
    torch.backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False))
    torch._weight_int8pack_mm = None
    monkeypatch.setitem(sys.modules, "torch", torch)

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)

    def without(*missing: str) -> None:
        for name in missing:
            del versions[name]
            if name == "torch":
                monkeypatch.setitem(sys.modules, "torch", None)

    return without


def examine(*arguments: str, **settings: Any) -> tuple[Result, dict[str, dict[str, Any]]]:
    result = CliRunner().invoke(cli.main, ["doctor", "--json", *arguments], **settings)
    report = json.loads(result.stdout)
    assert report["ok"] is (result.exit_code == 0)
    return result, {check["name"]: check for check in report["checks"]}


def test_a_whole_machine() -> None:
    result, checks = examine()
    assert result.exit_code == 0
    assert {name for name, check in checks.items() if check["ok"] is not True} == {"remote"}
    assert list(checks)[-1] == "chat"
    text = CliRunner().invoke(cli.main, ["doctor"])
    assert text.exit_code == 0
    assert re.search("^✓ sandbox +Landlock, seccomp$", text.stdout, re.M)
    assert re.search("^· remote +.*\n +→ set OPENAI_BASE_URL", text.stdout, re.M)


def test_the_extras_are_those_of_the_project() -> None:
    declared = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    names = {
        extra: tuple(re.split(r"[<>=\[]", line)[0] for line in declared[extra])
        for extra in doctor.EXTRAS
    }
    assert names == doctor.EXTRAS
    assert set(declared) - set(names) == {"all", "test", "dev"}


def test_without_torch(machine: Callable[..., None]) -> None:
    machine("torch")
    result, checks = examine()
    assert result.exit_code == 1
    assert checks["[local]"]["ok"] is None and "no torch" in checks["[local]"]["detail"]
    assert checks["[local]"]["fix"] == checks["chat"]["fix"] == "pip install 'trivium[local]'"
    assert "torch" not in checks


def test_torch_that_does_not_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: Callable[..., None]
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    result, checks = examine()
    assert result.exit_code == 1
    assert "OSError: libcudart.so.12" in checks["torch"]["detail"]
    assert "pip install" in checks["chat"]["fix"]


def test_without_any_extra(machine: Callable[..., None]) -> None:
    machine(*(name for extra in doctor.EXTRAS.values() for name in extra))
    _, checks = examine()
    assert [checks[f"[{extra}]"]["ok"] for extra in doctor.EXTRAS] == [None] * len(doctor.EXTRAS)
    assert checks["[plot]"]["fix"] == "pip install 'trivium[plot]'"


def test_without_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("TRIVIUM_HOME", "/nowhere/at/all")
    monkeypatch.setattr(doctor, "_torch", lambda: doctor.Check("torch", True, ""))
    _, checks = examine(env={"TRIVIUM_MODEL": "smollm2-135m-instruct"})
    assert checks["model"]["fix"] == "trivium pull smollm2-135m-instruct"


@pytest.mark.parametrize(
    "environment, ok",
    [
        ({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, True),
        ({"OPENAI_API_KEY": "sk-secret"}, True),
        ({"OPENAI_BASE_URL": "nonsense"}, False),
        ({"OPENAI_BASE_URL": "http://user:secret@host/v1"}, False),
    ],
)
def test_a_remote_endpoint_is_enough(
    machine: Callable[..., None], environment: dict[str, str], ok: bool
) -> None:
    machine("torch")
    result, checks = examine(env=environment)
    assert result.exit_code == (0 if ok else 1)
    assert checks["remote"]["ok"] is ok
    assert "secret" not in result.output


class Endpoint(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        allowed = self.headers.get("Authorization") == "Bearer right"
        body = json.dumps({"data": [{"id": "m-1"}, {"id": "m-2"}]} if allowed else {}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    httpd = http.server.HTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}/v1"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_the_endpoint_is_asked_only_online(endpoint: str) -> None:
    settings = {"OPENAI_BASE_URL": endpoint, "OPENAI_API_KEY": "right"}
    assert "not contacted" in examine(env=settings)[1]["remote"]["detail"]
    checks = examine("--online", env=settings)[1]
    assert checks["remote"]["ok"] is True
    assert "offers 2 models: m-1, m-2" in checks["remote"]["detail"]
    checks = examine("--online", env=settings | {"OPENAI_API_KEY": "wrong"})[1]
    assert checks["remote"]["ok"] is not True
    checks = examine("--online", env=settings | {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"})[1]
    assert checks["remote"]["ok"] is False
    assert "nothing answers" in checks["remote"]["detail"]


def test_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    level = SimpleNamespace(usable=False, summary="missing Landlock")
    monkeypatch.setattr(sandbox, "probe", lambda: level)
    result, checks = examine()
    assert result.exit_code == 0, "chatting needs no sandbox"
    assert checks["sandbox"]["ok"] is False and "Linux 5.13" in checks["sandbox"]["fix"]


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    result, checks = examine(env={"OPENAI_BASE_URL": "http://127.0.0.1:9"})
    assert checks["folders"]["ok"] is False
    assert "TRIVIUM_HOME" in checks["folders"]["fix"]
    assert (checks["chat"]["ok"], result.exit_code) == (False, 1), "no turn could be written down"


def test_a_broken_config_file(tmp_path: Path) -> None:
    path = tmp_path / "home" / "config" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("model =")
    result, checks = examine()
    assert result.exit_code == 1
    assert str(path) in checks["folders"]["detail"] and str(path) in checks["model"]["detail"]


@pytest.mark.parametrize("value, shown", [("1", True), ("0", False), ("", False)])
def test_offline(value: str, shown: bool) -> None:
    _, checks = examine(env={"HF_HUB_OFFLINE": value})
    assert (checks["network"]["ok"] is None) is shown


def test_a_remote_model_by_default() -> None:
    _, checks = examine(env={"TRIVIUM_MODEL": "remote:gpt"})
    assert checks["model"]["ok"] is None and checks["chat"]["ok"] is False


def test_marks_for_a_terminal_without_unicode() -> None:
    result = CliRunner(charset="ascii").invoke(cli.main, ["doctor"])
    assert result.exit_code == 0
    assert result.stdout.startswith("ok trivium") and result.stdout.isascii()


@pytest.mark.parametrize(
    ("environment", "ok"), [({}, True), ({"TRIVIUM_NATIVE": "0"}, None)], ids=["on", "off"]
)
def test_kernels(
    environment: dict[str, str], ok: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trivium.cli import doctor
    from trivium.nn import native

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    native.library.cache_clear()
    check = doctor._kernels()
    native.library.cache_clear()
    assert check.ok is ok and (ok or "TRIVIUM_NATIVE" in check.detail)
