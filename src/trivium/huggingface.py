"""Models of Hugging Face repositories, in the cache that all programs share.

    org/name                  the folder with config.json and safetensors, or the only GGUF file
    org/name:Q4_K_M           the GGUF file of that quantisation
    org/name/path/file.gguf   that GGUF file
    …@revision                a branch, tag or commit instead of main

What is in the cache is found without huggingface-hub, by the cache's layout:
`models--ORG--NAME/{refs/REVISION, snapshots/COMMIT/…}`. Only data is fetched, never pickles.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium.download import Progress
from trivium.errors import NotFound, Refused, TriviumError, UsageError

DATA = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model")
COPIES = ("original/*", "onnx/*", "openvino/*", "consolidated*")  # the same weights once more
REFERENCE = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?P<file>(?:/[\w.-]+)+\.gguf)?(?::(?P<quant>\w+))?"
    r"(?:@(?P<revision>[\w./-]+))?"
)


@dataclass(frozen=True)
class Reference:
    repo: str
    revision: str = "main"
    file: str | None = None
    quant: str | None = None

    @property
    def folder(self) -> Path:
        return cache_folder() / ("models--" + self.repo.replace("/", "--"))


def parse(name: str) -> Reference | None:
    """The reference that `name` spells, None when it is not of that form."""
    match = REFERENCE.fullmatch(name)
    if match is None or ".." in name:
        return None
    file = match["file"]
    return Reference(
        match["repo"], match["revision"] or "main", file and file.lstrip("/"), match["quant"]
    )


def cache_folder() -> Path:
    """The shared cache: HF_HUB_CACHE, else `hub` in HF_HOME, else in the user's cache folder."""
    home = os.environ.get("HF_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def is_set(variable: str) -> bool:
    """Whether an environment variable says yes, as huggingface-hub reads it."""
    return os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}


def find(reference: Reference) -> Path | None:
    """The model in the cache, None when it is not there or not whole."""
    snapshots = reference.folder / "snapshots"
    ref = reference.folder / "refs" / reference.revision
    commit = ref.read_text().strip() if ref.is_file() else reference.revision
    snapshot = snapshots / commit
    if not snapshot.is_dir() or snapshot == snapshots:
        return None
    return _model_in(snapshot, reference)


def _model_in(snapshot: Path, reference: Reference) -> Path | None:
    if reference.file:
        path = snapshot / reference.file
        return path if path.is_file() else None
    names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf")]
    if reference.quant is None and (snapshot / "config.json").is_file():
        return snapshot if has_weights(snapshot) else None
    return snapshot / _choose(names, reference) if names else None


def has_weights(folder: Path) -> bool:
    """Whether all safetensors files of a model folder are there, by its index where it has one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
            return all((folder / shard).is_file() for shard in shards)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return False  # cut short
    return any(folder.glob("*.safetensors"))


def _choose(names: list[str], reference: Reference) -> str:
    """The one GGUF file that the reference means."""
    wanted = (reference.quant or "").lower()
    matching = sorted(name for name in names if wanted in name.lower())
    if len(matching) == 1:
        return matching[0]
    which = (
        f"no GGUF file of quantisation {reference.quant}" if not matching else "several GGUF files"
    )
    raise UsageError(
        f"{reference.repo} has {which}; choose one: "
        + ", ".join(f"{reference.repo}/{name}" for name in sorted(names))
    )


def pull(reference: Reference, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """Bring the model into the cache (huggingface-hub resumes by itself) and return its path."""
    if offline or is_set("HF_HUB_OFFLINE"):
        path = find(reference)
        if path is None:
            raise NotFound(
                f"offline: {reference.repo} is not whole in {cache_folder()}; "
                "leave out --offline, HF_HUB_OFFLINE and TRIVIUM_OFFLINE once to fetch it"
            )
        return path
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise UsageError(
            f"fetching {reference.repo} from Hugging Face needs `pip install 'trivium[hub]'`"
        ) from None
    try:
        names = huggingface_hub.list_repo_files(reference.repo, revision=reference.revision)
        wanted = _wanted(names, reference)
        snapshot = huggingface_hub.snapshot_download(
            reference.repo,
            revision=reference.revision,
            cache_dir=cache_folder(),
            allow_patterns=wanted,
            ignore_patterns=list(COPIES) if len(wanted) > 1 else None,
            tqdm_class=_bridge(progress),
        )
    except TriviumError:
        raise
    except Exception as error:  # of several HTTP libraries, by version
        raise _failure(reference, error) from error
    path = _model_in(Path(snapshot), reference)
    if path is None:
        raise UsageError(f"{reference.repo} holds no model that Trivium can read")
    return path


def _wanted(names: list[str], reference: Reference) -> list[str]:
    """What to fetch of the repository's files: one GGUF file, or the data of the model folder."""
    if reference.file is not None:
        if reference.file not in names:
            raise NotFound(f"{reference.repo} has no file {reference.file}")
        return [reference.file]
    ggufs = [name for name in names if name.endswith(".gguf")]
    if reference.quant is None and any(name.endswith(".safetensors") for name in names):
        return list(DATA)
    if not ggufs:
        raise UsageError(
            f"{reference.repo} has no safetensors and no GGUF files; other formats can hold "
            "programs and are not read"
        )
    return [_choose(ggufs, reference)]


def _bridge(progress: Progress | None) -> Any:
    """A silent progress bar class that hands the largest of its byte counts to `progress`."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]

    class Bridge(tqdm):  # type: ignore[misc, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.done, self.bytes = 0, kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            if self.bytes and progress is not None:
                progress(self.done, int(self.total) if self.total else None)

    return Bridge


def _failure(reference: Reference, error: Exception) -> TriviumError:
    from huggingface_hub import errors

    repo = reference.repo
    if isinstance(error, errors.GatedRepoError):
        return Refused(f"{repo} wants its terms accepted: do so on its page, then `hf auth login`")
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFound(f"{repo} has no revision {reference.revision}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotFound(f"no Hugging Face repository {repo}; if it is private: `hf auth login`")
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return TriviumError(f"cannot fetch {repo} ({reason}): try again to go on from there")


def cached() -> Iterator[tuple[str, Path]]:
    """(org/name, snapshot folder) of every whole model in the cache, by its newest snapshot."""
    for folder in sorted(cache_folder().glob("models--*--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/")
        snapshots = [path for path in folder.glob("snapshots/*") if path.is_dir()]
        newest = max(snapshots, key=lambda path: path.stat().st_mtime, default=None)
        if newest and (has_weights(newest) or any(newest.rglob("*.gguf"))):
            yield repo, newest
