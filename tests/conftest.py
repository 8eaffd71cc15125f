"""Every test has its own home, and no endpoint of the person who runs it."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from trivium import hub
from trivium.errors import NotFound

# A shell that starts `make test` in the background has SIGINT ignored, which children inherit; the
# tests that press Ctrl-C need it as a terminal would have it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _found(name: str) -> Path | None:
    try:
        return hub.find(name)
    except NotFound:
        return None


# Before `own_home` hides them: where `make test`, or a person, pulled them.
PUBLISHED = {name: _found(name) for name in hub.CATALOGUE}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "trivium-home"))
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "TRIVIUM_MODEL", "TRIVIUM_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def published_model() -> Callable[[str], Path]:
    """Where a model of the catalogue is. Tests that use one carry the mark `published`."""

    def place(name: str) -> Path:
        path = PUBLISHED[name]
        if path is None:
            pytest.skip(f"needs the published model: trivium pull {name}")
        return path

    return place


@pytest.fixture(scope="session")
def default_model(published_model: Callable[[str], Path]) -> Path:
    """The published default model."""
    return published_model(hub.DEFAULT)


@pytest.fixture
def pulled_model(default_model: Path, own_home: None, tmp_path: Path) -> None:
    """The published default model in the test's own home, as if it had been pulled there.

    It is a link, so that a test may remove it.
    """
    link = tmp_path / "trivium-home/cache/models" / hub.DEFAULT / default_model.name
    link.parent.mkdir(parents=True)
    link.symlink_to(default_model)
