"""One runner over the registry: every kind has a forward, a backward, and comes back from the
disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trivium.checkpoint import save
from trivium.errors import NotFound, TriviumError, UsageError
from trivium.language.alignment.reward import RewardConfig
from trivium.language.classifier import ClassifierConfig
from trivium.language.elmo import ElmoConfig
from trivium.language.recurrent import RecurrentConfig
from trivium.language.transformer import TransformerConfig
from trivium.language.xlnet import XLNetConfig
from trivium.models import KINDS, load_checkpoint

SIZES = {"vocab_size": 61, "context": 32, "width": 32, "layers": 2, "heads": 4, "hidden": 48}
SMALL = {name: SIZES[name] for name in ("vocab_size", "context", "width", "layers")}
TINY: dict[str, tuple[str, Any]] = {
    "llama": ("transformer", TransformerConfig(**SIZES, groups=2)),
    "untied": ("transformer", TransformerConfig(**SIZES, tied=False, qkv_bias=True)),
    "gpt2": (
        "transformer",
        TransformerConfig(
            **SIZES, norm="layer", mlp="gelu_tanh", position="learned", mlp_bias=True
        ),
    ),
    "qwen3": ("transformer", TransformerConfig(**SIZES, groups=2, head_dim=16, qk_norm=True)),
    "gemma3": (
        "transformer",
        TransformerConfig(
            **SIZES,
            block="sandwich",
            stem="scaled",
            mlp="geglu",
            position="windowed_rotary",
            window=5,
            full_layers=(1,),
            qk_norm=True,
        ),
    ),
    "bert": (
        "transformer",
        TransformerConfig(
            **SIZES,
            norm="layer",
            block="post",
            stem="bert",
            token_types=1,
            mlp="gelu",
            position="learned",
            causal=False,
        ),
    ),
    "rnn": ("recurrent", RecurrentConfig(**SMALL, cell="rnn")),
    "lstm": ("recurrent", RecurrentConfig(**SMALL, tied=False)),
    "lstm-attention": ("recurrent", RecurrentConfig(**SMALL, top="attention")),
    "elmo": ("elmo", ElmoConfig(**SMALL)),
    "xlnet": ("xlnet", XLNetConfig(**SIZES)),
    "classifier": ("classifier", ClassifierConfig(**SIZES, classes=("a", "b", "c"))),
    "reward": ("reward", RewardConfig(**SIZES)),
}


def ids() -> tuple[Tensor, ...]:
    return (torch.randint(61, (2, 16)),)


LANGUAGE = ("transformer", "recurrent", "elmo", "xlnet")
INPUTS: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    **dict.fromkeys((*LANGUAGE, "classifier"), ids),
    "reward": lambda: (*ids(), torch.tensor([15, 7])),  # where the texts end
}
SHAPES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(LANGUAGE, (2, 16, 61)),
    "classifier": (2, 3),
    "reward": (2,),
}
KEPT = {"reward": torch.float32}  # what comes out whatever the weights are
UNTOUCHED = {"elmo": ("back.",)}  # parameters that another of its methods uses


@pytest.fixture(params=TINY)
def made(request: pytest.FixtureRequest) -> tuple[str, Any, nn.Module]:
    kind, config = TINY[request.param]
    torch.manual_seed(0)
    return kind, config, KINDS[kind][0](config)


def test_every_kind_is_tried() -> None:
    assert {kind for kind, _ in TINY.values()} == KINDS.keys()


def test_forward_and_backward(made: tuple[str, Any, nn.Module]) -> None:
    kind, _, model = made
    output = model(*INPUTS[kind]())
    assert output.shape == SHAPES[kind] and output.isfinite().all()
    output.float().square().mean().backward()
    for name, parameter in model.named_parameters():
        if name.startswith(UNTOUCHED.get(kind, ())):
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or "bias" in name, name


def test_saved_and_loaded_is_equal(made: tuple[str, Any, nn.Module], tmp_path: Path) -> None:
    kind, config, model = made
    save(tmp_path / "new" / "folder", model, kind, config)
    again = load_checkpoint(tmp_path / "new" / "folder")
    assert again.config == config
    inputs = INPUTS[kind]()
    assert torch.equal(model(*inputs), again(*inputs))


def test_dtype(made: tuple[str, Any, nn.Module]) -> None:
    kind, _, model = made
    assert model.to(torch.bfloat16)(*INPUTS[kind]()).dtype == KEPT.get(kind, torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "os.system"}, "kind 'os.system' is not known"),
        ({"widht": 3}, "no setting widht"),
        ({"width": 64}, "does not fit"),
        ({"layers": 3}, "does not fit"),
    ],
)
def test_a_wrong_config_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    kind, config = TINY["llama"]
    save(tmp_path, KINDS[kind][0](config), kind, config)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, **change}))
    with pytest.raises(UsageError, match=said):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"'])
def test_a_broken_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match="config.json"):
        load_checkpoint(tmp_path)


def test_weights_that_are_no_safetensors(tmp_path: Path) -> None:
    kind, config = TINY["llama"]
    save(tmp_path, KINDS[kind][0](config), kind, config)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for content in (b"", b"\x80\x02.pickle", whole[: len(whole) // 2]):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(UsageError, match="model.safetensors"):
            load_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NotFound):
        load_checkpoint(tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    from trivium.language.pretrained import load_pretrained

    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "max_position_embeddings": 8,
            }
        )
    )
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(TriviumError, match="pickle"):
        load_pretrained(tmp_path)
