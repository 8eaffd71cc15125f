"""From the name of a model on this disk to a model that is served."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from trivium import hub
from trivium.errors import UsageError
from trivium.language.batching import Batcher, Worker
from trivium.language.embed import Embedder, is_embedder
from trivium.language.engine import Engine
from trivium.llmos.shipped import load_assistant
from trivium.server.served import Embedding, Language, Model, Models


def open_models(names: Sequence[str], *, device: str = "auto") -> Models:
    """The models of these names, not loaded yet.

    Raises NotFound for one that is not here, and UsageError for two that clients could not tell
    apart.
    """
    openers: dict[str, Callable[[Worker], Model]] = {}
    for name in names:
        id, opener = _opener(name, device)
        if id in openers:
            raise UsageError(f"two models are called {id}: serve one, or rename its folder")
        openers[id] = opener
    worker = Worker()
    return Models({id: partial(opener, worker) for id, opener in openers.items()}, worker)


def _opener(name: str, device: str) -> tuple[str, Callable[[Worker], Model]]:
    path = hub.find(name)
    # A path is nobody's business but the server's: clients see the last part.
    is_path = name not in hub.CATALOGUE and Path(name).expanduser().exists()
    own = Path(os.path.abspath(path))  # of the folder ".", the name
    id = (own.stem if path.is_file() else own.name) if is_path else name

    def load(worker: Worker) -> Model:
        if is_embedder(path):
            return Embedding(id, Embedder.load(path, device=device), worker)
        plain, adapted = load_assistant(name, device=device)
        caller = None
        if adapted is not None:
            caller = Language(id, Batcher(Engine(adapted), worker=worker))
        return Language(id, Batcher(Engine(plain), worker=worker), caller)

    return id, load
