"""From the name of a model on this disk to a model that is served."""

from collections.abc import Callable, Sequence
from pathlib import Path

from trivium import hub, models
from trivium.errors import UsageError
from trivium.language.batching import Batcher
from trivium.language.embed import Embedder
from trivium.language.engine import Engine
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
    id = (path.stem if path.is_file() else path.resolve().name) if is_path else name

    def load() -> Model:
        model = models.load(path, device=device)
        if not model.model.config.causal:
            return Embedding(id, Embedder.load(path, device=device))
        engine = Engine(model)
        return Language(id, SharedEngine(engine, Batcher(engine)))

    return id, load
