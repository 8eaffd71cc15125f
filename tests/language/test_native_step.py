"""The native decoding step against the PyTorch path, on random packed models.

Tolerance: 2 % of the largest logit; the PyTorch path keeps its stream in bfloat16, the native one
in float32.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from trivium.language.native_step import NativeStep
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.nn import native
from trivium.nn.attention import KVCache
from trivium.nn.packed import PackedLinear, pack

CONFIG = TransformerConfig(
    vocab_size=96, context=512, width=64, layers=3, heads=4, groups=2, hidden=96, norm="rms"
)

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C compiler here")


def packed(config: TransformerConfig, kind: str = "Q8_0") -> Transformer:
    torch.manual_seed(0)
    model = Transformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.2 * torch.randn_like(parameter) * ("norm" in name or 0.3))
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear | nn.Embedding):
                bias = getattr(child, "bias", None)
                data = None if bias is None else bias.detach()
                setattr(parent, name, PackedLinear(pack(child.weight.detach(), kind), kind, data))
    return model.to(torch.bfloat16).eval()


def relative(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"groups": 4},
        {"groups": 1},
        {"tied": False},
        {"head_dim": 32},
        {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
        {"rope_base": 500.0},
        {"qk_norm": True, "head_dim": 32},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ],
    ids=str,
)
@torch.inference_mode()
def test_the_step_equals_the_model(change: dict[str, object]) -> None:
    model = packed(replace(CONFIG, **change))  # type: ignore[arg-type]
    step = NativeStep.of(model)
    assert step is not None
    ids = torch.randint(96, (1, 300), generator=torch.Generator().manual_seed(1))
    expected = model(ids)[0].float()
    cache = KVCache()
    model.features(ids[:, :250], cache)  # so that the store has to grow on the way
    ours = torch.cat([step([int(ids[0, i])], [cache]) for i in range(250, 300)])
    assert relative(ours, expected[250:]) < 0.02
    assert cache.length == 300


@torch.inference_mode()
def test_sequences_in_a_batch_do_not_meet() -> None:
    """Different lengths, together or alone: the same bits, in the logits and in the caches."""
    model = packed(CONFIG, "Q4_1")
    step = NativeStep.of(model)
    assert step is not None
    lengths = (1, 5, 40, 256)

    def caches() -> list[KVCache]:
        made = [KVCache() for _ in lengths]
        for cache, length in zip(made, lengths, strict=True):
            model.features(torch.arange(length)[None] % 96, cache)
        return made

    together, alone = caches(), caches()
    for token in (3, 4, 5):
        tokens = [token + i for i in range(len(lengths))]
        logits = step(tokens, together)
        for i, cache in enumerate(alone):
            assert torch.equal(step([tokens[i]], [cache])[0], logits[i])


@torch.inference_mode()
def test_python_and_native_steps_may_alternate() -> None:
    model = packed(CONFIG)
    step = NativeStep.of(model)
    assert step is not None
    ids = torch.randint(96, (1, 24), generator=torch.Generator().manual_seed(2))
    expected = model(ids)[0].float()
    cache = KVCache()
    rows = [model(ids[:, :4], cache)[0].float()]
    for i in range(4, 24):
        native_turn = i % 3 > 0
        token = ids[:, i : i + 1]
        rows.append(step([int(token)], [cache]) if native_turn else model(token, cache)[0].float())
    assert relative(torch.cat(rows), expected) < 0.03


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "layer"},
        {"mlp": "gelu_tanh", "mlp_bias": True},
        {"position": "learned"},
        {"window": 8},
        {"query_scale": 0.2},
        {"causal": False},
        {"stem": "scaled"},
        {"block": "sandwich"},
        {"mlp": "geglu"},
    ],
    ids=str,
)
def test_other_models_are_left_to_pytorch(change: dict[str, object]) -> None:
    assert NativeStep.of(packed(replace(CONFIG, **change))) is None  # type: ignore[arg-type]


def test_unpacked_models_are_left_to_pytorch() -> None:
    assert NativeStep.of(Transformer(CONFIG)) is None


def test_without_kernels_there_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed(CONFIG)
    monkeypatch.setattr(native, "library", lambda: None)
    assert NativeStep.of(model) is None
