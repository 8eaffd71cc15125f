"""The folder of a run: who may write into it, and whether what is there is the same run.

recipe.json      recipe, settings, versions, data with their hashes
metrics.jsonl    what was measured, step by step        samples/    what the model wrote
snapshots/       all that it takes to go on             .lock       held while a process runs
results.json     the results: the run is done           README.md   the model card
report.html      the whole run on a page                curves.png
config.json, model.safetensors, tokenizer.json, …       the model, which `-m FOLDER` takes
"""

import contextlib
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trivium.errors import UsageError
from trivium.files import read_json, writing
from trivium.recipes.config import PASSING
from trivium.recipes.loading import RECORD, word

RESULTS = "results.json"
LOCK = ".lock"
# What is written before the first step.
EARLY = {RECORD, LOCK, "tokenizer.json", "tokenizer_config.json", "generation_config.json"}

_held: dict[Path, int] = {}  # the locks of this process


def claim(folder: Path) -> None:
    """Make the folder and lock it. Raises UsageError if another process runs there.

    A process that holds it already, from a run that was broken off, takes it over.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        place = folder.resolve()
        if place in _held:
            return
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(handle, 32, 0).decode(errors="replace").strip()
        os.close(handle)
        who = f" (process {owner})" if owner.isdigit() else ""
        raise UsageError(
            f"another process{who} runs in {folder}: wait for it, or choose another folder with "
            "out="
        ) from None
    except OSError:  # a file system without locks
        os.close(handle)
        return
    with contextlib.suppress(OSError):
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
    _held[place] = handle


def release(folder: Path) -> None:
    handle = _held.pop(folder.resolve(), None)
    if handle is not None:
        os.close(handle)


def clear(folder: Path) -> bool:
    """Delete what a run left that ended before it had made anything, by a wrong setting or broken
    data. Returns False, and deletes nothing, if there is more than that."""
    there = {path.name for path in folder.iterdir()}
    if not there <= EARLY:
        return False
    for name in there - {LOCK}:
        (folder / name).unlink()
    return True


def set_aside(folder: Path) -> Path:
    """Rename the run that is there to NAME.old-1, or the next number that is free."""
    real = folder.resolve()
    number = 1
    while (target := real.with_name(f"{real.name}.old-{number}")).exists():
        number += 1
    release(folder)
    with writing(target):
        real.rename(target)
    return target


def check(folder: Path) -> dict[str, Any]:
    """The record of the run that is in the folder; {} if there is none.

    Raises UsageError if the folder holds something else.
    """
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder: choose another with out=")
    if (folder / RECORD).is_file():
        return read_json(folder / RECORD)
    with writing(folder):
        others = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    if others:
        raise UsageError(
            f"{folder} holds other files ({others[0]}): choose another folder with out="
        )
    return {}


def compare(folder: Path, record: Mapping[str, Any], name: str, config: Mapping[str, Any]) -> None:
    """Raises UsageError if the run that is recorded is not this one."""
    ways = "choose another folder with out=, or set it aside with fresh=yes"
    if record.get("recipe") != name:
        raise UsageError(f"{folder} holds a run of {record.get('recipe')!r}, not {name!r}: {ways}")
    old = record.get("config")
    old = old if isinstance(old, dict) else {}
    differing = [
        f"{key}={word(old[key]) if key in old else '(none)'} there, "
        f"{word(config[key]) if key in config else '(none)'} here"
        for key in {**old, **config}
        if key not in PASSING and old.get(key) != config.get(key)
    ]
    if differing:
        raise UsageError(f"{folder} holds another run ({'; '.join(differing)}): {ways}")
