"""What a model on this machine needs, which a plain installation lacks."""

import contextlib
from collections.abc import Iterator

from trivium.errors import UsageError


@contextlib.contextmanager
def needed(otherwise: str = "") -> Iterator[None]:
    """Turn the import that fails in the block into a line that says how to get what is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("trivium"):
            raise
        raise UsageError(
            f"a model on this machine needs {error.name}: pip install 'trivium[local]'{otherwise}"
        ) from error
