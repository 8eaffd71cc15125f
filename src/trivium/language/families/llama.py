"""Llama (Touvron et al. 2023) and Mistral (Jiang et al. 2023)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trivium.checkpoint import Change, Part, Table, unpair
from trivium.language.families.family import (
    Family,
    Shapes,
    Values,
    read_rope,
    read_window,
    same,
    write_rope,
)
from trivium.language.transformer import TransformerConfig

HF_CONFIG = {
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "groups": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}
HF_NAMES: Table = {
    **same(
        {
            "embedding.weight": "model.embed_tokens.weight",
            "layers.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
            "layers.{}.attention.qk_norm.q": "model.layers.{}.self_attn.q_norm.weight",
            "layers.{}.attention.qk_norm.k": "model.layers.{}.self_attn.k_norm.weight",
            "layers.{}.attention.out.weight": "model.layers.{}.self_attn.o_proj.weight",
            "layers.{}.attention.out.bias": "model.layers.{}.self_attn.o_proj.bias",
            "layers.{}.mlp_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
            "layers.{}.mlp.down.weight": "model.layers.{}.mlp.down_proj.weight",
            "layers.{}.mlp.down.bias": "model.layers.{}.mlp.down_proj.bias",
            "norm.weight": "model.norm.weight",
            "head.weight": "lm_head.weight",
        }
    ),
    "layers.{}.attention.qkv.weight": (
        Part("model.layers.{}.self_attn.q_proj.weight"),
        Part("model.layers.{}.self_attn.k_proj.weight"),
        Part("model.layers.{}.self_attn.v_proj.weight"),
    ),
    "layers.{}.attention.qkv.bias": (
        Part("model.layers.{}.self_attn.q_proj.bias"),
        Part("model.layers.{}.self_attn.k_proj.bias"),
        Part("model.layers.{}.self_attn.v_proj.bias"),
    ),
    "layers.{}.mlp.gate_up.weight": (
        Part("model.layers.{}.mlp.gate_proj.weight"),
        Part("model.layers.{}.mlp.up_proj.weight"),
    ),
    "layers.{}.mlp.gate_up.bias": (
        Part("model.layers.{}.mlp.gate_proj.bias"),
        Part("model.layers.{}.mlp.up_proj.bias"),
    ),
}
GGUF_CONFIG = {
    "context": "{arch}.context_length",
    "width": "{arch}.embedding_length",
    "layers": "{arch}.block_count",
    "heads": "{arch}.attention.head_count",
    "groups": "{arch}.attention.head_count_kv",
    "head_dim": "{arch}.attention.key_length",
    "hidden": "{arch}.feed_forward_length",
    "norm_eps": "{arch}.attention.layer_norm_rms_epsilon",
    "rope_base": "{arch}.rope.freq_base",
}


def gguf_names(q_change: Change | None = None, k_change: Change | None = None) -> Table:
    """The tensors of llama.cpp; only for Llama are the rows of q and k in another order."""
    return {
        **same(
            {
                "embedding.weight": "token_embd.weight",
                "layers.{}.attention_norm.weight": "blk.{}.attn_norm.weight",
                "layers.{}.attention.qk_norm.q": "blk.{}.attn_q_norm.weight",
                "layers.{}.attention.qk_norm.k": "blk.{}.attn_k_norm.weight",
                "layers.{}.attention.out.weight": "blk.{}.attn_output.weight",
                "layers.{}.attention.out.bias": "blk.{}.attn_output.bias",
                "layers.{}.mlp_norm.weight": "blk.{}.ffn_norm.weight",
                "layers.{}.mlp.down.weight": "blk.{}.ffn_down.weight",
                "layers.{}.mlp.down.bias": "blk.{}.ffn_down.bias",
                "norm.weight": "output_norm.weight",
                "head.weight": "output.weight",
            }
        ),
        "layers.{}.attention.qkv.weight": (
            Part("blk.{}.attn_q.weight", q_change),
            Part("blk.{}.attn_k.weight", k_change),
            Part("blk.{}.attn_v.weight"),
        ),
        "layers.{}.attention.qkv.bias": (
            Part("blk.{}.attn_q.bias", q_change),
            Part("blk.{}.attn_k.bias", k_change),
            Part("blk.{}.attn_v.bias"),
        ),
        "layers.{}.mlp.gate_up.weight": (
            Part("blk.{}.ffn_gate.weight"),
            Part("blk.{}.ffn_up.weight"),
        ),
        "layers.{}.mlp.gate_up.bias": (
            Part("blk.{}.ffn_gate.bias"),
            Part("blk.{}.ffn_up.bias"),
        ),
    }


# The structure that Llama and its descendants have in common.
FIXED: Mapping[str, Any] = {
    "norm": "rms",
    "block": "pre",
    "stem": "plain",
    "position": "rotary",
    "causal": True,
    "qk_norm": False,
    "query_scale": None,
}
DEFAULTS: Mapping[str, Any] = {"norm_eps": 1e-6, "tied": False}
BUFFERS = ("rotary_emb.inv_freq", "rope_freqs.weight")


def head_sizes(config: TransformerConfig) -> dict[str, int]:
    """What llama.cpp wants to know besides: the same width for keys, values and rotation."""
    head_dim = config.head_dim or config.width // config.heads
    arch = "{arch}"
    return {
        f"{arch}.attention.value_length": head_dim,
        f"{arch}.rope.dimension_count": head_dim,
    }


def _biases(metadata: Values, shapes: Shapes) -> dict[str, bool]:
    return {
        "qkv_bias": "blk.0.attn_q.bias" in shapes,
        "out_bias": "blk.0.attn_output.bias" in shapes,
        "mlp_bias": "blk.0.ffn_down.bias" in shapes,
    }


LLAMA = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM",),
    gguf="llama",
    fixed={**FIXED, "window": None},
    defaults=DEFAULTS,
    activations={"silu": "swiglu"},
    hf_config={
        **HF_CONFIG,
        "qkv_bias": "attention_bias",
        "out_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
    },
    hf_names=HF_NAMES,
    gguf_config=GGUF_CONFIG,
    gguf_names=gguf_names(unpair("heads"), unpair("groups")),
    from_hf=read_rope,
    to_hf=write_rope,
    from_gguf=_biases,
    to_gguf=head_sizes,
    ignored=BUFFERS,
)

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    architectures=("MistralForCausalLM",),
    fixed={**FIXED, "qkv_bias": False, "out_bias": False, "mlp_bias": False},
    hf_config=HF_CONFIG,
    # The window of transformers where a config has none.
    from_hf=lambda raw: read_rope(raw) | read_window({"sliding_window": 4096, **raw}),
    to_hf=lambda config: write_rope(config) | {"sliding_window": config.window},
)
