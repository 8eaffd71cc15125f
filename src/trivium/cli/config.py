"""What a person set once: `config.toml` in `files.config_home()`.

    model = "smollm2-135m-instruct"

The order is: flag, environment variable, config file, built-in default.
"""

import tomllib
from typing import Any

from trivium import files, hub
from trivium.errors import UsageError

KEYS = {"model": str}


def read() -> dict[str, Any]:
    """The values of the config file, {} when there is none. A broken file is an error."""
    path = files.config_home() / "config.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:  # its message names line and column
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise UsageError(f"cannot read {path}: {reason}") from error
    for key, value in values.items():
        if key not in KEYS:
            raise UsageError(f"{path}: unknown key {key!r}; known: {', '.join(KEYS)}")
        if not isinstance(value, KEYS[key]):
            raise UsageError(f"{path}: {key} must be a {KEYS[key].__name__}, not {value!r}")
    return values


def default_model() -> str:
    """The model to use when neither `--model` nor TRIVIUM_MODEL names one."""
    return str(read().get("model") or hub.DEFAULT)
