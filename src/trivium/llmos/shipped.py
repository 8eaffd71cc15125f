"""The adapters that come with the package: models of the catalogue, trained to use tools.

`src/trivium/weights/NAME/` holds the adapter of the catalogue's model NAME in PEFT's files, the
chat template that it was trained with, and a card (README.md) with its recipe, seed and checksums.
It is made by `trivium train tool-use`.

An adapter that was trained for calls alone would cost general ability; so plain answers are those
of the published weights, and the adapted ones stand beside them. Putting an adapter into packed
weights takes seconds, so the changed matrices are kept in the user's cache: as blocks, which depend
on the model and the adapter alone.
"""

import contextlib
import copy
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
) -> tuple[LanguageModel, LanguageModel | None]:
    """A model by its name in `trivium models` or by its path, and the same with the adapter that we
    ship for it, if there is one: it is for calls and for what is said of their results. Weights
    that the adapter leaves as they are exist once. Raises as `trivium.models.load` does."""
    path, adapter = hub.find(name), adapter_of(name)
    plain = load(path, device=device, precision=precision)
    if adapter is None:
        return plain, None
    kept = cache_home() / "adapted" / f"{name}-{_key(name, adapter)}.safetensors"
    template = ChatTemplate.from_folder(adapter)
    if plain.precision != "packed":
        adapted = load(path, device=device, precision=precision, adapter=adapter)
        return plain, replace(adapted, template=template)
    blocks = _kept(kept)
    if not blocks:
        blocks = _changed(load(path, device=device, precision="packed", adapter=adapter).model)
        _keep(blocks, kept)
    model = _sharing(plain.model)
    for place, tensor in blocks.items():
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, PackedLinear(tensor, "Q8_0"))
    return plain, replace(plain, model=model, template=template)


def _sharing(model: Transformer) -> Transformer:
    """Another model with the same weights, of which any can be replaced."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _key(name: str, adapter: Path) -> str:
    weights = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes())
    weights.update(hub.CATALOGUE[name].sha256.encode())
    return weights.hexdigest()[:16]


def _changed(model: Transformer) -> dict[str, Tensor]:
    """The matrices of 8 bits; the others are as the model's file has them."""
    layers = model.layers.named_modules(prefix="layers")
    return {n: m.blocks() for n, m in layers if isinstance(m, PackedLinear) and m.kind == "Q8_0"}


def _keep(blocks: dict[str, Tensor], path: Path) -> None:
    """A disk that is full costs only the time to do it again."""
    from safetensors.torch import save

    with contextlib.suppress(TriviumError, OSError):
        write_atomic(path, save(blocks))
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
