"""Families of published language models, each a literal table: how its config and its weights are
named on the Hugging Face hub and in GGUF files, in terms of our `TransformerConfig` and
`Transformer`.

To add a family, add a `Family`; no code of the model changes unless it has a part that is new.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trivium.checkpoint import Part, Table, transpose, unpair
from trivium.errors import UsageError
from trivium.language.transformer import TransformerConfig


@dataclass(frozen=True)
class Family:
    """`hf_config` and `gguf_config` map our fields to theirs; `fixed` is what all members
    share, or what a config means that does not say.

    `{arch}` in a GGUF key stands for the file's architecture. Tensors whose names end in one of
    `ignored` are buffers that other programs store and nobody needs.
    """

    architectures: tuple[str, ...]
    gguf: str
    fixed: Mapping[str, Any]
    hf_config: Mapping[str, str]
    hf_names: Table
    gguf_config: Mapping[str, str]
    gguf_names: Table
    hf_prefixes: tuple[str, ...] = ()  # some tools write one of these before every name
    ignored: tuple[str, ...] = ()


def _same(names: Mapping[str, str]) -> dict[str, tuple[Part, ...]]:
    return {ours: (Part(theirs),) for ours, theirs in names.items()}


LLAMA = Family(
    architectures=("LlamaForCausalLM", "MistralForCausalLM"),
    gguf="llama",
    fixed={"norm": "rms", "norm_eps": 1e-6, "mlp": "swiglu", "position": "rotary", "tied": False},
    hf_config={
        "vocab_size": "vocab_size",
        "context": "max_position_embeddings",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "groups": "num_key_value_heads",
        "head_dim": "head_dim",
        "hidden": "intermediate_size",
        "norm_eps": "rms_norm_eps",
        "rope_base": "rope_theta",
        "rope_scaling": "rope_scaling",
        "qkv_bias": "attention_bias",
        "out_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
        "tied": "tie_word_embeddings",
    },
    hf_names={
        **_same(
            {
                "embedding.weight": "model.embed_tokens.weight",
                "layers.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
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
    },
    gguf_config={
        "context": "{arch}.context_length",
        "width": "{arch}.embedding_length",
        "layers": "{arch}.block_count",
        "heads": "{arch}.attention.head_count",
        "groups": "{arch}.attention.head_count_kv",
        "head_dim": "{arch}.attention.key_length",
        "hidden": "{arch}.feed_forward_length",
        "norm_eps": "{arch}.attention.layer_norm_rms_epsilon",
        "rope_base": "{arch}.rope.freq_base",
    },
    gguf_names={
        **_same(
            {
                "embedding.weight": "token_embd.weight",
                "layers.{}.attention_norm.weight": "blk.{}.attn_norm.weight",
                "layers.{}.attention.out.weight": "blk.{}.attn_output.weight",
                "layers.{}.mlp_norm.weight": "blk.{}.ffn_norm.weight",
                "layers.{}.mlp.down.weight": "blk.{}.ffn_down.weight",
                "norm.weight": "output_norm.weight",
                "head.weight": "output.weight",
            }
        ),
        "layers.{}.attention.qkv.weight": (
            Part("blk.{}.attn_q.weight", unpair("heads")),
            Part("blk.{}.attn_k.weight", unpair("groups")),
            Part("blk.{}.attn_v.weight"),
        ),
        "layers.{}.mlp.gate_up.weight": (
            Part("blk.{}.ffn_gate.weight"),
            Part("blk.{}.ffn_up.weight"),
        ),
    },
    ignored=("rotary_emb.inv_freq", "rope_freqs.weight"),
)

GPT2 = Family(
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    gguf="gpt2",
    fixed={
        "norm": "layer",
        "mlp": "gelu_tanh",
        "position": "learned",
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
    },
    hf_config={
        "vocab_size": "vocab_size",
        "context": "n_positions",
        "width": "n_embd",
        "layers": "n_layer",
        "heads": "n_head",
        "hidden": "n_inner",
        "norm_eps": "layer_norm_epsilon",
        "tied": "tie_word_embeddings",
    },
    hf_names={
        **_same(
            {
                "embedding.weight": "wte.weight",
                "position.weight": "wpe.weight",
                "layers.{}.attention_norm.weight": "h.{}.ln_1.weight",
                "layers.{}.attention_norm.bias": "h.{}.ln_1.bias",
                "layers.{}.attention.qkv.bias": "h.{}.attn.c_attn.bias",
                "layers.{}.attention.out.bias": "h.{}.attn.c_proj.bias",
                "layers.{}.mlp_norm.weight": "h.{}.ln_2.weight",
                "layers.{}.mlp_norm.bias": "h.{}.ln_2.bias",
                "layers.{}.mlp.up.bias": "h.{}.mlp.c_fc.bias",
                "layers.{}.mlp.down.bias": "h.{}.mlp.c_proj.bias",
                "norm.weight": "ln_f.weight",
                "norm.bias": "ln_f.bias",
            }
        ),
        "layers.{}.attention.qkv.weight": (Part("h.{}.attn.c_attn.weight", transpose),),
        "layers.{}.attention.out.weight": (Part("h.{}.attn.c_proj.weight", transpose),),
        "layers.{}.mlp.up.weight": (Part("h.{}.mlp.c_fc.weight", transpose),),
        "layers.{}.mlp.down.weight": (Part("h.{}.mlp.c_proj.weight", transpose),),
    },
    gguf_config={
        "context": "{arch}.context_length",
        "width": "{arch}.embedding_length",
        "layers": "{arch}.block_count",
        "heads": "{arch}.attention.head_count",
        "hidden": "{arch}.feed_forward_length",
        "norm_eps": "{arch}.attention.layer_norm_epsilon",
    },
    gguf_names=_same(
        {
            "embedding.weight": "token_embd.weight",
            "position.weight": "position_embd.weight",
            "layers.{}.attention_norm.weight": "blk.{}.attn_norm.weight",
            "layers.{}.attention_norm.bias": "blk.{}.attn_norm.bias",
            "layers.{}.attention.qkv.weight": "blk.{}.attn_qkv.weight",
            "layers.{}.attention.qkv.bias": "blk.{}.attn_qkv.bias",
            "layers.{}.attention.out.weight": "blk.{}.attn_output.weight",
            "layers.{}.attention.out.bias": "blk.{}.attn_output.bias",
            "layers.{}.mlp_norm.weight": "blk.{}.ffn_norm.weight",
            "layers.{}.mlp_norm.bias": "blk.{}.ffn_norm.bias",
            "layers.{}.mlp.up.weight": "blk.{}.ffn_up.weight",
            "layers.{}.mlp.up.bias": "blk.{}.ffn_up.bias",
            "layers.{}.mlp.down.weight": "blk.{}.ffn_down.weight",
            "layers.{}.mlp.down.bias": "blk.{}.ffn_down.bias",
            "norm.weight": "output_norm.weight",
            "norm.bias": "output_norm.bias",
            "head.weight": "output.weight",
        }
    ),
    hf_prefixes=("transformer.",),
    ignored=(".attn.bias", ".attn.masked_bias"),
)

FAMILIES = (LLAMA, GPT2)
ACTIVATIONS = {"silu": "swiglu", "gelu": "gelu", "gelu_new": "gelu_tanh"}


def hf_family(raw: Mapping[str, Any]) -> Family:
    """The family that a published config.json belongs to."""
    names = raw.get("architectures") or []
    for family in FAMILIES:
        if any(name in family.architectures for name in names):
            return family
    known = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise UsageError(
        f"architecture {', '.join(names) or 'missing'} is not supported; known: {known}"
    )


def hf_config(family: Family, raw: Mapping[str, Any]) -> TransformerConfig:
    """Our config from a published config.json. Raises UsageError for what we would get wrong."""
    values = dict(raw)
    rope = raw.get("rope_parameters") or {}  # the spelling since transformers 5
    values.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
    if rope.get("rope_type", "default") != "default":
        values.setdefault("rope_scaling", rope)
    fields = {
        ours: values[theirs]
        for ours, theirs in family.hf_config.items()
        if values.get(theirs) is not None
    }
    activation = raw.get("hidden_act") or raw.get("activation_function")
    if activation is not None and ACTIVATIONS.get(activation) not in (family.fixed["mlp"], "gelu"):
        raise UsageError(f"activation {activation!r} is not supported in {family.architectures[0]}")
    fixed = dict(family.fixed)
    if activation == "gelu":
        fixed["mlp"] = "gelu"
    fields.setdefault("hidden", 4 * fields.get("width", 0))
    if window := raw.get("sliding_window"):
        # Inside the window, sliding and full attention are the same.
        fields["context"] = min(fields["context"], window)
    return _config(fixed, fields)


def gguf_family(metadata: Mapping[str, Any]) -> Family:
    """The family of a GGUF file, by its `general.architecture`."""
    architecture = metadata.get("general.architecture")
    for family in FAMILIES:
        if family.gguf == architecture:
            return family
    known = ", ".join(family.gguf for family in FAMILIES)
    raise UsageError(f"GGUF architecture {architecture!r} is not supported; known: {known}")


def gguf_config(
    family: Family, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> TransformerConfig:
    """Our config from the metadata of a GGUF file and the shapes of its tensors."""
    fields = {
        ours: metadata[key]
        for ours, theirs in family.gguf_config.items()
        if (key := theirs.format(arch=family.gguf)) in metadata
    }
    try:
        fields["vocab_size"] = shapes["token_embd.weight"][0]
    except KeyError:
        raise UsageError("the GGUF file has no tensor token_embd.weight") from None
    fields["tied"] = "output.weight" not in shapes
    scaling = metadata.get(f"{family.gguf}.rope.scaling.type", "none")
    if scaling == "linear":
        factor = metadata[f"{family.gguf}.rope.scaling.factor"]
        fields["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif scaling != "none":
        raise UsageError(f"rope scaling {scaling!r} is not supported; none and linear are")
    return _config(family.fixed, fields)


def _config(fixed: Mapping[str, Any], fields: Mapping[str, Any]) -> TransformerConfig:
    missing = [name for name in ("width", "layers", "heads", "context") if not fields.get(name)]
    if missing:
        raise UsageError(f"the config does not say: {', '.join(missing)}")
    return TransformerConfig(**{**fixed, **fields})
