"""What a model is trained on.

    documents(source)            texts of files, folders, globs, hf:NAME or the embedded default

Each name is loaded when it is first used: reading texts needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trivium.data.corpus import Corpus as Corpus
    from trivium.data.corpus import Documents as Documents
    from trivium.data.corpus import Texts as Texts
    from trivium.data.corpus import documents as documents

IGNORE = -100  # the target where nothing is to be learnt

_HOMES = {
    "Corpus": "corpus",
    "Documents": "corpus",
    "Texts": "corpus",
    "documents": "corpus",
}
__all__ = ["IGNORE", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
