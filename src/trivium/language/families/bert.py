"""BERT (Devlin et al. 2018): an encoder whose features sentence embeddings are made of, with the
head that was trained to guess masked words if it has one. The pooler and the head for the next
sentence are left out."""

from typing import Any

from trivium.checkpoint import Part
from trivium.language.families.family import Family, Values, same
from trivium.language.transformer import TransformerConfig

_LAYER = "encoder.layer.{}."
_HEAD = "cls.predictions."
_WITH_HEAD = ("BertForMaskedLM", "BertForPreTraining")


def _from_hf(raw: Values) -> dict[str, Any]:
    masked = any(name in _WITH_HEAD for name in raw.get("architectures") or [])
    return {"transform": "bert" if masked else "none"}


def _to_hf(config: TransformerConfig) -> dict[str, Any]:
    return {} if config.transform == "none" else {"architectures": ["BertForMaskedLM"]}


def _to_gguf(config: TransformerConfig) -> dict[str, Any]:
    return {
        "{arch}.attention.causal": False,
        "{arch}.pooling_type": 1,  # the mean
    }


BERT = Family(
    model_type="bert",
    architectures=("BertModel", *_WITH_HEAD),
    gguf="bert",
    fixed={
        "norm": "layer",
        "block": "post",
        "stem": "bert",
        "position": "learned",
        "causal": False,
        "window": None,
        "qk_norm": False,
        "query_scale": None,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "tied": True,
    },
    defaults={"norm_eps": 1e-12, "token_types": 2},
    activations={"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"},
    required={
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
    hf_config={
        "vocab_size": "vocab_size",
        "context": "max_position_embeddings",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "hidden": "intermediate_size",
        "norm_eps": "layer_norm_eps",
        "token_types": "type_vocab_size",
    },
    hf_names={
        **same(
            {
                "embedding.weight": "embeddings.word_embeddings.weight",
                "position.weight": "embeddings.position_embeddings.weight",
                "stem.types": "embeddings.token_type_embeddings.weight",
                "stem.norm.weight": "embeddings.LayerNorm.weight",
                "stem.norm.bias": "embeddings.LayerNorm.bias",
                "layers.{}.attention.out.weight": _LAYER + "attention.output.dense.weight",
                "layers.{}.attention.out.bias": _LAYER + "attention.output.dense.bias",
                "layers.{}.attention_norm.weight": _LAYER + "attention.output.LayerNorm.weight",
                "layers.{}.attention_norm.bias": _LAYER + "attention.output.LayerNorm.bias",
                "layers.{}.mlp.up.weight": _LAYER + "intermediate.dense.weight",
                "layers.{}.mlp.up.bias": _LAYER + "intermediate.dense.bias",
                "layers.{}.mlp.down.weight": _LAYER + "output.dense.weight",
                "layers.{}.mlp.down.bias": _LAYER + "output.dense.bias",
                "layers.{}.mlp_norm.weight": _LAYER + "output.LayerNorm.weight",
                "layers.{}.mlp_norm.bias": _LAYER + "output.LayerNorm.bias",
                "transform.dense.weight": _HEAD + "transform.dense.weight",
                "transform.dense.bias": _HEAD + "transform.dense.bias",
                "transform.norm.weight": _HEAD + "transform.LayerNorm.weight",
                "transform.norm.bias": _HEAD + "transform.LayerNorm.bias",
                "embedding.bias": _HEAD + "bias",
            }
        ),
        **{
            f"layers.{{}}.attention.qkv.{leaf}": tuple(
                Part(f"{_LAYER}attention.self.{part}.{leaf}") for part in ("query", "key", "value")
            )
            for leaf in ("weight", "bias")
        },
    },
    gguf_config={
        "context": "{arch}.context_length",
        "width": "{arch}.embedding_length",
        "layers": "{arch}.block_count",
        "heads": "{arch}.attention.head_count",
        "hidden": "{arch}.feed_forward_length",
        "norm_eps": "{arch}.attention.layer_norm_epsilon",
        "token_types": "tokenizer.ggml.token_type_count",
    },
    gguf_names={
        **same(
            {
                "embedding.weight": "token_embd.weight",
                "position.weight": "position_embd.weight",
                "stem.types": "token_types.weight",
                "stem.norm.weight": "token_embd_norm.weight",
                "stem.norm.bias": "token_embd_norm.bias",
                "layers.{}.attention.out.weight": "blk.{}.attn_output.weight",
                "layers.{}.attention.out.bias": "blk.{}.attn_output.bias",
                "layers.{}.attention_norm.weight": "blk.{}.attn_output_norm.weight",
                "layers.{}.attention_norm.bias": "blk.{}.attn_output_norm.bias",
                "layers.{}.mlp.up.weight": "blk.{}.ffn_up.weight",
                "layers.{}.mlp.up.bias": "blk.{}.ffn_up.bias",
                "layers.{}.mlp.down.weight": "blk.{}.ffn_down.weight",
                "layers.{}.mlp.down.bias": "blk.{}.ffn_down.bias",
                "layers.{}.mlp_norm.weight": "blk.{}.layer_output_norm.weight",
                "layers.{}.mlp_norm.bias": "blk.{}.layer_output_norm.bias",
            }
        ),
        **{
            f"layers.{{}}.attention.qkv.{leaf}": tuple(
                Part(f"blk.{{}}.attn_{part}.{leaf}") for part in "qkv"
            )
            for leaf in ("weight", "bias")
        },
    },
    from_hf=_from_hf,
    to_hf=_to_hf,
    from_gguf=lambda metadata, shapes: {"tied": True},
    to_gguf=_to_gguf,
    hf_prefixes=("bert.",),
    ignored=(
        "embeddings.position_ids",
        "pooler.dense.weight",
        "pooler.dense.bias",
        "cls.predictions.bias",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    ),
)
