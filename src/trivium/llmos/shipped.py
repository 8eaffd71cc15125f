"""The adapters that come with the package: models of the catalogue, trained to use tools.

`src/trivium/weights/NAME/` holds the adapter of the catalogue's model NAME in PEFT's files, the
chat template that it was trained with, and a card (README.md) with its recipe, seed and checksums.
It is made by `trivium train tool-use`.

Putting an adapter into packed weights takes seconds, so the changed matrices are kept in the user's
cache: as blocks, which depend on the model and the adapter alone.
"""

import contextlib
import hashlib
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from trivium import hub
from trivium.errors import TriviumError
from trivium.files import cache_home, write_atomic
from trivium.language.chat_template import ChatTemplate
from trivium.language.pretrained import LanguageModel, Precision
from trivium.language.transformer import Transformer
from trivium.models import load
from trivium.nn.packed import PackedLinear

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
    if adapter is None:
        return load(path, device=device, precision=precision)
    kept = cache_home() / "adapted" / f"{name}-{_key(name, adapter)}.safetensors"
    if precision in ("auto", "packed") and (blocks := _kept(kept)):
        loaded = load(path, device=device, precision=precision)
        if loaded.precision == "packed":
            _put(loaded.model, blocks)
            return replace(loaded, template=ChatTemplate.from_folder(adapter))
    loaded = load(path, device=device, precision=precision, adapter=adapter)
    if loaded.precision == "packed":
        _keep(loaded.model, kept)
    return replace(loaded, template=ChatTemplate.from_folder(adapter))


def _key(name: str, adapter: Path) -> str:
    weights = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes())
    weights.update(hub.CATALOGUE[name].sha256.encode())
    return weights.hexdigest()[:16]


def _keep(model: Transformer, path: Path) -> None:
    """Store the matrices of 8 bits; the others are as the model's file has them. A disk that is
    full costs only the time to do it again."""
    from safetensors.torch import save

    layers = model.layers.named_modules(prefix="layers")
    found = {n: m.blocks() for n, m in layers if isinstance(m, PackedLinear) and m.kind == "Q8_0"}
    with contextlib.suppress(TriviumError, OSError):
        write_atomic(path, save(found))
        for other in path.parent.glob(f"{path.name.rpartition('-')[0]}-*.safetensors"):
            if other != path:
                other.unlink()


def _kept(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError):
        return {}


def _put(model: Transformer, blocks: dict[str, Tensor]) -> None:
    for name, tensor in blocks.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, PackedLinear(tensor, "Q8_0"))
