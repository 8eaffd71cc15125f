"""Gemma 3, the text model (Gemma Team 2025): five layers with a sliding window and low rotary base
for each that sees everything, norms on both sides of attention and MLP, normalised queries and
keys, embeddings scaled by √C."""

from typing import Any

from trivium.checkpoint import Part, Table, plus_one
from trivium.errors import UsageError
from trivium.language.families.family import (
    Family,
    Shapes,
    Values,
    read_rope,
    read_window,
    write_rope,
    write_window,
)
from trivium.language.families.llama import BUFFERS, GGUF_CONFIG, HF_CONFIG, HF_NAMES, gguf_names
from trivium.language.transformer import TransformerConfig
from trivium.nn.positions import scaling_kind

PATTERN = 6  # every sixth layer sees everything

_NORMS = {
    "layers.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "layers.{}.attention_post_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.attention.qk_norm.q": "model.layers.{}.self_attn.q_norm.weight",
    "layers.{}.attention.qk_norm.k": "model.layers.{}.self_attn.k_norm.weight",
    "layers.{}.mlp_norm.weight": "model.layers.{}.pre_feedforward_layernorm.weight",
    "layers.{}.mlp_post_norm.weight": "model.layers.{}.post_feedforward_layernorm.weight",
    "norm.weight": "model.norm.weight",
}
_GGUF_POST_NORMS: Table = {
    "layers.{}.attention_post_norm.weight": (Part("blk.{}.post_attention_norm.weight"),),
    "layers.{}.mlp_post_norm.weight": (Part("blk.{}.post_ffw_norm.weight"),),
}


def _full_layers(layers: int, pattern: int = PATTERN) -> range:
    return range(pattern - 1, layers, pattern)


def _from_hf(raw: Values) -> dict[str, Any]:
    # Since transformers 5 there is one entry for each kind of layer.
    parameters = raw.get("rope_parameters") or {}
    full, sliding = parameters.get("full_attention"), parameters.get("sliding_attention") or {}
    if scaling_kind(sliding) != "default":
        raise UsageError("rope scaling in layers with a sliding window is not supported")
    pattern = raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern") or PATTERN
    local_base = raw.get("rope_local_base_freq") or sliding.get("rope_theta") or 10000.0
    rope = read_rope({**raw, "rope_parameters": full}, base=1e6)
    window = read_window(
        {"sliding_window": 4096, **raw}, _full_layers(raw.get("num_hidden_layers", 0), pattern)
    )
    scale = raw.get("query_pre_attn_scalar", 256) ** -0.5
    return {**rope, **window, "window_rope_base": local_base, "query_scale": scale}


def _to_hf(config: TransformerConfig) -> dict[str, Any]:
    head_dim = config.head_dim or config.width // config.heads
    scalar = head_dim if config.query_scale is None else config.query_scale**-2
    return {
        **write_rope(config),
        **write_window(config),
        "rope_local_base_freq": config.window_rope_base,
        "query_pre_attn_scalar": round(scalar),
    }


def _from_gguf(metadata: Values, shapes: Shapes) -> dict[str, Any]:
    layers, width = metadata["gemma3.block_count"], metadata["gemma3.embedding_length"]
    pattern = metadata.get("gemma3.attention.sliding_window_pattern", PATTERN)
    base = metadata.get("gemma3.rope.freq_base_swa", 10000.0)
    # The file has no key for the scale: llama.cpp knows that only the model of 27 billion, which
    # has 62 layers, is scaled by the width.
    per_head = width / metadata["gemma3.attention.head_count"]
    window = metadata.get("gemma3.attention.sliding_window")
    return {
        "window": window,
        "full_layers": tuple(_full_layers(layers, pattern)) if window else (),
        "window_rope_base": base,
        "query_scale": per_head**-0.5 if layers == 62 else None,
    }


def _to_gguf(config: TransformerConfig) -> dict[str, Any]:
    return {
        "{arch}.attention.sliding_window": config.window,
        "{arch}.attention.value_length": config.head_dim or config.width // config.heads,
        "{arch}.rope.freq_base_swa": config.window_rope_base,
    }


GEMMA3 = Family(
    model_type="gemma3_text",
    architectures=("Gemma3ForCausalLM",),
    gguf="gemma3",
    fixed={
        "norm": "rms",
        "block": "sandwich",
        "stem": "scaled",
        "position": "windowed_rotary",
        "causal": True,
        "qk_norm": True,
        "mlp_bias": False,
    },
    defaults={"norm_eps": 1e-6, "tied": True, "head_dim": 256},
    activations={"gelu_pytorch_tanh": "geglu"},
    activation_key="hidden_activation",
    required={
        "use_bidirectional_attention": (False,),
        "attn_logit_softcapping": (),
        "final_logit_softcapping": (),
    },
    hf_config={**HF_CONFIG, "qkv_bias": "attention_bias", "out_bias": "attention_bias"},
    # The gains are stored as their distance from 1; GGUF stores the sum.
    hf_names={**HF_NAMES, **{ours: (Part(name, plus_one),) for ours, name in _NORMS.items()}},
    gguf_config=GGUF_CONFIG,
    gguf_names={**gguf_names(), **_GGUF_POST_NORMS},
    from_hf=_from_hf,
    to_hf=_to_hf,
    from_gguf=_from_gguf,
    to_gguf=_to_gguf,
    ignored=BUFFERS,
)
