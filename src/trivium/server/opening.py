"""From the name of a model on this disk to a model that is served."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from trivium import hub, models
from trivium.checkpoint import read_json
from trivium.errors import UsageError
from trivium.gguf_file import GGUFFile
from trivium.language.batching import Batcher
from trivium.language.embed import Embedder
from trivium.language.engine import Engine
from trivium.language.families import gguf_family, hf_family
from trivium.language.families.bert import BERT
from trivium.server.served import Embedding, Language, Model, Models, SharedEngine


def open_models(names: Sequence[str], *, device: str = "auto") -> Models:
    """The models of these names, not loaded yet.

    Raises NotFound for one that is not here, and UsageError for two that clients could not tell
    apart.
    """
    loaders: dict[str, Callable[[], Model]] = {}
    for name in names:
        id, loader = _opener(name, device)
        if id in loaders:
            raise UsageError(f"two models are called {id}: serve one, or rename its folder")
        loaders[id] = loader
    return Models(loaders)


def _opener(name: str, device: str) -> tuple[str, Callable[[], Model]]:
    path = hub.find(name)
    # A path is nobody's business but the server's: clients see the last part.
    is_path = name not in hub.CATALOGUE and Path(name).expanduser().exists()
    own = Path(os.path.abspath(path))  # of the folder ".", the name
    id = (own.stem if path.is_file() else own.name) if is_path else name

    def load() -> Model:
        if _is_encoder(path):
            return Embedding(id, Embedder.load(path, device=device))
        engine = Engine(models.load(path, device=device))
        return Language(id, SharedEngine(engine, Batcher(engine)))

    return id, load


def _is_encoder(path: Path) -> bool:
    """Whether this model reads text as a whole, and so makes embeddings."""
    if path.is_dir():
        return hf_family(read_json(path / "config.json")) is BERT
    return gguf_family(GGUFFile(path).metadata) is BERT
