"""Models on this machine: how a command opens one, and what a plain installation lacks for it."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trivium.errors import UsageError

if TYPE_CHECKING:
    from trivium.language.engine import Engine
    from trivium.language.pretrained import Precision


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


def require_here(model: str, what: str) -> None:
    """Refuse a model behind an endpoint, which cannot do `what`."""
    if model.startswith("remote:"):
        raise UsageError(
            f"{model} is at an endpoint, which answers requests: `trivium run`; give a model on "
            f"this machine with -m {what}"
        )


def open_engine(
    model: str,
    *,
    device: str | None = None,
    threads: int | None = None,
    precision: "Precision" = "auto",
) -> "Engine":
    """The engine of a model by name or path. Raises NotFound before anything large is imported."""
    from trivium import hub

    path = hub.find(model)
    with needed():
        import torch

        from trivium.language.engine import Engine
        from trivium.models import load

    if threads is not None:
        torch.set_num_threads(threads)
    return Engine(load(path, device=device or "auto", precision=precision))
