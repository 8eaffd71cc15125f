"""The adapters that come with the package: models of the catalogue, trained to use tools.

`src/trivium/weights/NAME/` holds the adapter of the catalogue's model NAME in PEFT's files, the chat
template that it was trained with, and a card (README.md) with its recipe, seed and checksums. It is
made by `trivium train tool-use`.
"""

from dataclasses import replace
from pathlib import Path

from trivium import hub
from trivium.language.chat_template import ChatTemplate
from trivium.language.pretrained import LanguageModel, Precision
from trivium.models import load

WEIGHTS = Path(__file__).parent.parent / "weights"


def adapter_of(name: str) -> Path | None:
    """The folder of the adapter that belongs to a model of the catalogue."""
    folder = WEIGHTS / name
    return folder if name in hub.CATALOGUE and folder.is_dir() else None


def load_assistant(
    name: str, *, device: str = "auto", precision: Precision = "auto"
) -> LanguageModel:
    """A model by its name in `trivium models` or by its path, for conversations: with the adapter
    that we ship for it, if there is one. Raises as `trivium.models.load` does."""
    path, adapter = hub.find(name), adapter_of(name)
    loaded = load(path, device=device, precision=precision, adapter=adapter)
    if adapter is None:
        return loaded
    # Its control tokens are those of the model.
    return replace(loaded, template=ChatTemplate.from_folder(adapter))
