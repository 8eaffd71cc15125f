"""Logits of our Transformer against `transformers`, on tiny random weights saved by that library.

Tolerances: float32 1e-4 relative to the largest logit; bfloat16 3e-2, a few units of its last place
after two layers (both sides round at different points).
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from trivium.language.pretrained import read_folder
from trivium.language.transformer import Transformer
from trivium.nn.attention import KVCache

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
GEMMA3 = {**GROUPED, "head_dim": 16, "num_hidden_layers": 7, "sliding_window": 6}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**SMALL, "num_key_value_heads": 4}),
    "grouped": ("Llama", {**SMALL, "num_key_value_heads": 2}),
    "one-group": ("Llama", {**SMALL, "num_key_value_heads": 1}),
    "tied": ("Llama", {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "head-dim": ("Llama", {**SMALL, "num_key_value_heads": 2, "head_dim": 16}),
    "biases": (
        "Llama",
        {**SMALL, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    ),
    "llama3-rope": (
        "Llama",
        {**SMALL, "num_key_value_heads": 2, "rope_parameters": LLAMA3_ROPE},
    ),
    "linear-rope": (
        "Llama",
        {
            **SMALL,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        },
    ),
    "mistral": (
        "Mistral",
        {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": None},
    ),
    "mistral-window": ("Mistral", {**GROUPED, "sliding_window": 7}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen2-window": (
        "Qwen2",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-biases": ("Qwen3", {**GROUPED, "head_dim": 8, "attention_bias": True}),
    "gemma3": ("Gemma3", GEMMA3),
    "gemma3-scaled": (
        "Gemma3",
        {
            **GEMMA3,
            "query_pre_attn_scalar": 24,
            "num_hidden_layers": 2,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2-gelu": ("GPT2", {**GPT2, "activation_function": "gelu"}),
}


CONFIGS = {"Gemma3": "Gemma3Text"}


@pytest.fixture(params=CASES, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(reference model, folder) with random weights, biases and norms included."""
    kind, values = CASES[request.param]
    config = getattr(transformers, f"{CONFIGS.get(kind, kind)}Config")(**values)
    name = f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    torch.manual_seed(0)
    reference = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("model")
    reference.save_pretrained(folder)
    return reference, folder


def reference_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits
    return logits


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2), ("int8", 1e-1)]
)
def test_logits(pair: tuple[Any, Path], precision: str, tolerance: float) -> None:
    reference, folder = pair
    ours = read_folder(folder, CPU, precision)
    ids = torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(1))
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    expected = reference_logits(copy.deepcopy(reference).to(dtype), ids)
    with torch.no_grad():
        assert relative(ours(ids), expected) < tolerance


def test_cached_equals_uncached(pair: tuple[Any, Path]) -> None:
    """Prefill in uneven chunks, then single tokens, then a truncation: as if computed at once."""
    _, folder = pair
    ours = read_folder(folder, CPU, "float32")
    ids = torch.randint(97, (1, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = ours(ids)
        cache = KVCache()
        pieces = [ours(ids[:, a:b], cache) for a, b in ((0, 7), (7, 20), (20, 21), (21, 25))]
        cache.truncate(22)
        pieces[-1] = pieces[-1][:, :1]
        pieces += [ours(ids[:, i : i + 1], cache) for i in range(22, 40)]
    assert relative(torch.cat(pieces, 1), expected) < 1e-5


def test_shards_and_bare_names(pair: tuple[Any, Path], tmp_path: Path) -> None:
    """Sharded folders give the same weights; GPT-2's are also published without a prefix."""
    from safetensors.torch import load_file, save_file

    reference, folder = pair
    whole = read_folder(folder, CPU, "float32").state_dict()
    reference.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert_equal(read_folder(tmp_path / "shards", CPU, "float32"), whole)
    bare = tmp_path / "bare"
    bare.mkdir()
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {k.removeprefix("transformer."): v for k, v in tensors.items()}, bare / "model.safetensors"
    )
    (bare / "config.json").write_text((folder / "config.json").read_text())
    assert_equal(read_folder(bare, CPU, "float32"), whole)


def assert_equal(model: Transformer, state: dict[str, torch.Tensor]) -> None:
    ours = model.state_dict()
    assert ours.keys() == state.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, state[name]), name


def test_misfits_are_named(pair: tuple[Any, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from trivium.errors import UsageError

    _, folder = pair
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[-1]
    tensors["who.asked"] = tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UsageError) as caught:
        read_folder(tmp_path, CPU, "float32")
    assert name in str(caught.value) and "who.asked" in str(caught.value)


def test_unknown_architecture(tmp_path: Path) -> None:
    from trivium.errors import UsageError

    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["NopeForCausalLM"]}))
    with pytest.raises(UsageError, match="NopeForCausalLM.*LlamaForCausalLM"):
        read_folder(tmp_path, CPU, "float32")
