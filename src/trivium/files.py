"""Where Trivium keeps things, and how it writes them: whole or not at all.

Folders follow the platform's conventions (XDG on Linux); `TRIVIUM_HOME` puts all four under one
folder, which is what tests and portable installs use.

    config_home()  what a person edits          ~/.config/trivium
    data_home()    what must not be lost        ~/.local/share/trivium   conversations, adapters
    cache_home()   what can be fetched again    ~/.cache/trivium         models
    state_home()   logs and undo snapshots      ~/.local/state/trivium
"""

import errno
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from trivium.errors import NotFound, TriviumError, UsageError


def _home(kind: str, default: Callable[..., str]) -> Path:
    override = os.environ.get("TRIVIUM_HOME")
    return Path(os.path.expanduser(override)) / kind if override else Path(default("trivium"))


def config_home() -> Path:
    return _home("config", platformdirs.user_config_dir)


def data_home() -> Path:
    return _home("data", platformdirs.user_data_dir)


def cache_home() -> Path:
    return _home("cache", platformdirs.user_cache_dir)


def state_home() -> Path:
    return _home("state", platformdirs.user_state_dir)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TriviumError(
                f"no space left on the disk while writing {path}: free some, or set TRIVIUM_HOME "
                "to a folder on another disk"
            ) from error
        raise TriviumError(f"cannot write {path}: {error.strerror or error}") from error


def write_atomic(path: Path, data: bytes | str, *, private: bool = False) -> None:
    """Write `data` beside `path`, flush it to the disk, then rename: readers see old or new, never
    half. A private file can be read by its owner only; others as the user's umask has it."""
    payload = data.encode() if isinstance(data, str) else data
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.parent / f".{path.name}.{secrets.token_hex(4)}"
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            name.unlink(missing_ok=True)
            raise


def append_json(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line and flush it to the disk before returning.

    A line that an earlier crash left unfinished is closed first, so it can spoil only itself.
    """
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The JSON object in a file; {} if it is `optional` and not there.

    Raises NotFound, or UsageError for what is no file of JSON in UTF-8.
    """
    try:
        value = json.loads(path.read_bytes().decode())
    except FileNotFoundError:
        if optional:
            return {}
        raise NotFound(f"no such file: {path}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {path}: not UTF-8 text (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: expected a JSON object")
    return value


def read_json_lines(path: Path, *, skip_broken: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file.

    A broken line is an error that names file and line; `skip_broken` passes over it instead, which
    is right for journals, where only a line cut short by a crash can be broken.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                if skip_broken:
                    continue
                raise UsageError(f"{path}, line {number}: not valid JSON ({error})") from error
            if not isinstance(record, dict):
                if skip_broken:
                    continue
                raise UsageError(f"{path}, line {number}: expected a JSON object")
            yield record
