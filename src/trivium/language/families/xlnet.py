"""XLNet (Yang et al. 2019), with the language-model head that it was trained with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trivium.checkpoint import Change, Part, SafetensorsFolder, Table, expand, fill
from trivium.errors import UsageError
from trivium.files import read_json
from trivium.language.families.family import same
from trivium.language.xlnet import XLNet, XLNetConfig

ARCHITECTURE = "XLNetLMHeadModel"
CONFIG = {
    "vocab_size": "vocab_size",
    "width": "d_model",
    "layers": "n_layer",
    "heads": "n_head",
    "head_dim": "d_head",
    "hidden": "d_inner",
    "norm_eps": "layer_norm_eps",
}
ACTIVATIONS: dict[str, Literal["gelu", "gelu_tanh"]] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
REQUIRED: Mapping[str, tuple[Any, ...]] = {  # others would change what the model computes
    "attn_type": ("bi",),
    "bi_data": (False,),
    "clamp_len": (-1, 0),
    "same_length": (False,),
    "tie_word_embeddings": (True,),
}
_TRAINED_WITH = 512  # tokens; the config does not say

# (C, H, D) ↔ (H·D, C), and ↔ (C, H·D) for the way out
_rows = Change(
    lambda tensor, config: tensor.flatten(1).t(),
    lambda tensor, config: tensor.t().reshape(-1, config.heads, len(tensor) // config.heads),
)
_columns = Change(
    lambda tensor, config: tensor.flatten(1),
    lambda tensor, config: tensor.reshape(len(tensor), config.heads, -1),
)
_vector = Change(lambda tensor, config: tensor.flatten(), lambda tensor, config: tensor[None, None])

_LAYER = "transformer.layer.{}."
NAMES: Table = {
    **same(
        {
            "embedding.weight": "transformer.word_embedding.weight",
            "embedding.bias": "lm_loss.bias",
            "layers.{}.attention.content_bias": _LAYER + "rel_attn.r_w_bias",
            "layers.{}.attention.distance_bias": _LAYER + "rel_attn.r_r_bias",
            "layers.{}.attention.type_bias": _LAYER + "rel_attn.r_s_bias",
            "layers.{}.attention.types": _LAYER + "rel_attn.seg_embed",
            "layers.{}.attention_norm.weight": _LAYER + "rel_attn.layer_norm.weight",
            "layers.{}.attention_norm.bias": _LAYER + "rel_attn.layer_norm.bias",
            "layers.{}.mlp.up.weight": _LAYER + "ff.layer_1.weight",
            "layers.{}.mlp.up.bias": _LAYER + "ff.layer_1.bias",
            "layers.{}.mlp.down.weight": _LAYER + "ff.layer_2.weight",
            "layers.{}.mlp.down.bias": _LAYER + "ff.layer_2.bias",
            "layers.{}.mlp_norm.weight": _LAYER + "ff.layer_norm.weight",
            "layers.{}.mlp_norm.bias": _LAYER + "ff.layer_norm.bias",
        }
    ),
    "query": (Part("transformer.mask_emb", _vector),),
    "layers.{}.attention.q.weight": (Part(_LAYER + "rel_attn.q", _rows),),
    "layers.{}.attention.kv.weight": (
        Part(_LAYER + "rel_attn.k", _rows),
        Part(_LAYER + "rel_attn.v", _rows),
    ),
    "layers.{}.attention.distance.weight": (Part(_LAYER + "rel_attn.r", _rows),),
    "layers.{}.attention.out.weight": (Part(_LAYER + "rel_attn.o", _columns),),
}


def is_xlnet(raw: Mapping[str, Any]) -> bool:
    """Whether a published config.json is of such a model."""
    return ARCHITECTURE in (raw.get("architectures") or [])


def xlnet_config(raw: Mapping[str, Any]) -> XLNetConfig:
    """Our config from a published config.json. Raises UsageError for what we would get wrong."""
    for key, allowed in REQUIRED.items():
        if raw.get(key) is not None and raw[key] not in allowed:
            raise UsageError(f"{ARCHITECTURE} with {key} = {raw[key]!r} is unsupported")
    activation = raw.get("ff_activation", "gelu")
    if activation not in ACTIVATIONS:
        raise UsageError(f"activation {activation!r} is not supported in {ARCHITECTURE}")
    missing = [theirs for theirs in CONFIG.values() if theirs not in raw]
    if missing:
        raise UsageError(f"the config of {ARCHITECTURE} does not say {', '.join(missing)}")
    return XLNetConfig(
        **{ours: raw[theirs] for ours, theirs in CONFIG.items()},
        context=_TRAINED_WITH,
        mlp=ACTIVATIONS[activation],
        token_types=2,
    )


def read_xlnet(folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> XLNet:
    """The weights of a Hugging Face folder."""
    config = xlnet_config(read_json(folder / "config.json"))
    with torch.device("meta"):
        model = XLNet(config)

    def place(name: str, tensor: Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        value = tensor.to(device, dtype, copy=True).contiguous()
        setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))

    rows = expand(NAMES, config.layers)
    # The head's matrix is the embedding's, stored twice.
    fill(model, SafetensorsFolder(folder), rows, place, ignored=["lm_loss.weight"])
    return model.eval()
