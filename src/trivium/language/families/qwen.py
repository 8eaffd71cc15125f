"""Qwen2 (Yang et al. 2024: biases on queries, keys and values) and Qwen3 (Yang et al. 2025:
normalised queries and keys instead)."""

from typing import Any

from trivium.language.families.family import (
    Family,
    Values,
    read_rope,
    read_window,
    write_rope,
    write_window,
)
from trivium.language.families.llama import (
    BUFFERS,
    DEFAULTS,
    FIXED,
    GGUF_CONFIG,
    HF_CONFIG,
    HF_NAMES,
    gguf_names,
    head_sizes,
)
from trivium.language.transformer import TransformerConfig


def _from_hf(raw: Values) -> dict[str, Any]:
    fields = read_rope(raw)
    if raw.get("use_sliding_window"):
        first = min(raw.get("max_window_layers", 28), raw.get("num_hidden_layers", 0))
        fields |= read_window({"sliding_window": 4096, **raw}, range(first))
    return fields


def _to_hf(config: TransformerConfig) -> dict[str, Any]:
    window = write_window(config) | {"use_sliding_window": config.window is not None}
    return write_rope(config) | window


QWEN2 = Family(
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    gguf="qwen2",
    fixed={**FIXED, "qkv_bias": True, "out_bias": False, "mlp_bias": False},
    defaults=DEFAULTS,
    activations={"silu": "swiglu"},
    hf_config=HF_CONFIG,
    hf_names=HF_NAMES,
    gguf_config=GGUF_CONFIG,
    gguf_names=gguf_names(),
    from_hf=_from_hf,
    to_hf=_to_hf,
    to_gguf=head_sizes,
    ignored=BUFFERS,
)

QWEN3 = Family(
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM",),
    gguf="qwen3",
    fixed={**FIXED, "qk_norm": True, "mlp_bias": False},
    defaults={**DEFAULTS, "head_dim": 128},
    activations={"silu": "swiglu"},
    hf_config={**HF_CONFIG, "qkv_bias": "attention_bias", "out_bias": "attention_bias"},
    hf_names=HF_NAMES,
    gguf_config=GGUF_CONFIG,
    gguf_names=gguf_names(),
    from_hf=_from_hf,
    to_hf=_to_hf,
    to_gguf=head_sizes,
    ignored=BUFFERS,
)
