"""Every test has its own home, and no endpoint of the person who runs it."""

import signal
from pathlib import Path

import pytest

from trivium import hub
from trivium.errors import NotFound

# A shell that starts `make test` in the background has SIGINT ignored, which children inherit; the
# tests that press Ctrl-C need it as a terminal would have it.
signal.signal(signal.SIGINT, signal.default_int_handler)

try:  # before `own_home` hides it: where `make test` pulled it
    DEFAULT_MODEL: Path | None = hub.find(hub.DEFAULT)
except NotFound:
    DEFAULT_MODEL = None


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "trivium-home"))
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "TRIVIUM_MODEL", "TRIVIUM_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The published default model. Tests that use it carry the mark `published`."""
    if DEFAULT_MODEL is None:
        pytest.skip(f"needs the published model: trivium pull {hub.DEFAULT}")
    return DEFAULT_MODEL


@pytest.fixture
def pulled_model(default_model: Path, own_home: None, tmp_path: Path) -> None:
    """The published default model in the test's own home, as if it had been pulled there.

    It is a link, so that a test may remove it.
    """
    link = tmp_path / "trivium-home/cache/models" / hub.DEFAULT / default_model.name
    link.parent.mkdir(parents=True)
    link.symlink_to(default_model)
