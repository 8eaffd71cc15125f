"""What a config says that we would get wrong is refused, in one line that names it."""

from typing import Any

import pytest

from trivium.errors import UsageError
from trivium.language.families import gguf_config, gguf_family, hf_config, hf_family
from trivium.language.transformer import TransformerConfig

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GEMMA_GGUF = {
    "general.architecture": "gemma3",
    "gemma3.context_length": 128,
    "gemma3.embedding_length": 32,
    "gemma3.block_count": 7,
    "gemma3.feed_forward_length": 48,
    "gemma3.attention.head_count": 4,
    "gemma3.attention.key_length": 16,
    "gemma3.attention.sliding_window": 6,
    "gemma3.attention.layer_norm_rms_epsilon": 9.999999974752427e-07,
}


def read(name: str, **settings: Any) -> TransformerConfig:
    raw = {"architectures": [name], **SIZES, **settings}
    return hf_config(hf_family(raw), raw)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("LlamaForCausalLM", {"hidden_act": "relu"}, "activation 'relu'"),
        ("LlamaForCausalLM", {"hidden_act": "gelu"}, "activation 'gelu'"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "yarn"}}, "scaling 'yarn'"),
        ("LlamaForCausalLM", {"num_attention_heads": "four"}, "heads is 'four'"),
        ("LlamaForCausalLM", {"num_hidden_layers": -1}, "layers is -1"),
        ("LlamaForCausalLM", {"hidden_size": None}, "does not say: width"),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "layer_types": ["odd"] * 7}, "'odd'"),
        ("Gemma3ForCausalLM", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30"),
        ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50"),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional"),
        ("Gemma3ForCausalLM", {"hidden_activation": "gelu"}, "activation 'gelu'"),
        (
            "Gemma3ForCausalLM",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default"},
                    "sliding_attention": {"rope_type": "linear", "factor": 2.0},
                }
            },
            "sliding window is not supported",
        ),
        ("BertModel", {"is_decoder": True}, "is_decoder"),
        ("BertModel", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("Gemma3ForConditionalGeneration", {}, "Gemma3ForConditionalGeneration is not supported"),
    ],
)
def test_what_is_refused(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(name, **settings)


def test_windows() -> None:
    """Off unless the config turns it on, in the layers that the family gives one."""
    assert read("Qwen2ForCausalLM", sliding_window=8).window is None
    qwen = read("Qwen2ForCausalLM", use_sliding_window=True, sliding_window=8, max_window_layers=5)
    assert (qwen.window, qwen.full_layers) == (8, (0, 1, 2, 3, 4))
    everywhere = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 28}
    assert read("Qwen2ForCausalLM", **everywhere).window is None
    assert read("MistralForCausalLM", sliding_window=None).window is None
    mistral = read("MistralForCausalLM")  # what transformers assumes
    assert (mistral.window, mistral.full_layers, mistral.context) == (4096, (), 128)
    gemma = read("Gemma3ForCausalLM", sliding_window=8, sliding_window_pattern=3)
    assert (gemma.window, gemma.full_layers) == (8, (2, 5))
    assert (gemma.rope_base, gemma.window_rope_base) == (1e6, 1e4)


def test_gemma_in_gguf() -> None:
    family = gguf_family(GEMMA_GGUF)
    shapes = {"token_embd.weight": (97, 32)}
    config = gguf_config(family, GEMMA_GGUF, shapes)
    assert (config.window, config.full_layers, config.query_scale) == (6, (5,), None)
    assert config.norm_eps == 1e-6 and config.tied and config.vocab_size == 97
    largest = gguf_config(family, {**GEMMA_GGUF, "gemma3.block_count": 62}, shapes)
    assert largest.query_scale == (32 / 4) ** -0.5  # of the width, not of the heads' 16


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"general.architecture": "mamba"}, "'mamba' is not supported; known: .*gemma3"),
        ({"gemma3.block_count": 0}, "does not say: layers"),
        ({"gemma3.rope.scaling.type": "yarn"}, "'yarn'"),
        ({"gemma3.feed_forward_length": [1, 2]}, r"hidden is \[1, 2\]"),
    ],
)
def test_broken_gguf_metadata(change: dict[str, Any], said: str) -> None:
    metadata = {**GEMMA_GGUF, **change}
    with pytest.raises(UsageError, match=said):
        gguf_config(gguf_family(metadata), metadata, {"token_embd.weight": (97, 32)})


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count"])
def test_missing_gguf_metadata(key: str) -> None:
    metadata = {k: v for k, v in GEMMA_GGUF.items() if k != f"gemma3.{key}"}
    with pytest.raises(UsageError, match="does not say"):
        gguf_config(gguf_family(metadata), metadata, {"token_embd.weight": (97, 32)})
