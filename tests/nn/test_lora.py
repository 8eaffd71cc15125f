"""Low-rank changes against the matrix they stand for."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trivium.nn.lora import LoRALinear, lora_layers, lora_parameters, matrix_shape, merge
from trivium.nn.packed import PackedLinear, pack
from trivium.nn.quantized import Int8Linear

COLUMNS, SIZES = 64, (32, 16, 16)
PARTS = {
    "all": (True, True, True),
    "first-and-last": (True, False, True),
    "middle": (False, True, False),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def linear(bias: bool = True) -> nn.Linear:
    return nn.Linear(COLUMNS, sum(SIZES), bias=bias)


def adapted(base: Any, parts: str = "all", **settings: Any) -> LoRALinear:
    layer = LoRALinear(base, SIZES, PARTS[parts], rank=4, alpha=6.0, **settings)
    with torch.no_grad():
        for part in layer.changes.values():
            part.b.normal_(0, 0.1)
    return layer


def changed(weight: Tensor, layer: LoRALinear) -> Tensor:
    """W + (α/r)·B A, part by part."""
    whole = weight.clone()
    for i, part in layer.changes.items():
        first = sum(SIZES[:i])
        whole[first : first + SIZES[i]] += 6.0 / 4 * part.b @ part.a
    return whole


@pytest.mark.parametrize("parts", PARTS)
def test_the_matrix_is_changed_part_by_part(parts: str) -> None:
    base = linear()
    weight = base.weight.detach().clone()
    layer, x = adapted(base, parts), torch.randn(3, 5, COLUMNS)
    expected = nn.functional.linear(x, changed(weight, layer), base.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight + layer.delta(), changed(weight, layer))
    layer.merged()
    torch.testing.assert_close(base.weight, changed(weight, layer), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", PARTS)
def test_gradients_are_those_of_the_changed_matrix(parts: str) -> None:
    """float64, within 1e-12."""
    base = linear().double()
    layer = adapted(base, parts).double()
    x = torch.randn(3, 5, COLUMNS, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 5, sum(SIZES), dtype=torch.float64)
    learnt = [x, *(p for part in layer.changes.values() for p in part.parameters())]
    plain = nn.functional.linear(x, changed(base.weight, layer), base.bias)
    expected = torch.autograd.grad((plain - target).square().sum(), learnt)
    found = torch.autograd.grad((layer(x) - target).square().sum(), learnt)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_fresh_adapter_changes_nothing() -> None:
    base = linear()
    x = torch.randn(3, COLUMNS)
    before = base(x)
    assert torch.equal(LoRALinear(base, SIZES, PARTS["all"], rank=4, alpha=8)(x), before)


def test_only_the_changes_are_trained() -> None:
    model = nn.Sequential(adapted(linear(), "first-and-last"), nn.LayerNorm(sum(SIZES)))
    model[1].requires_grad_(False)
    model(torch.randn(3, COLUMNS)).square().sum().backward()
    trained = lora_parameters(model)
    assert len(trained) == 4 and all(p.grad is not None and p.grad.any() for p in trained)
    others = {id(p) for p in model.parameters()} - {id(p) for p in trained}
    assert all(p.grad is None for p in model.parameters() if id(p) in others)


def test_dropout_is_of_training_alone() -> None:
    layer, x = adapted(linear(), dropout=0.5), torch.randn(3, COLUMNS)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("kind", ["packed", "int8", "bfloat16"])
def test_small_weights_are_adapted_and_merged(kind: str) -> None:
    """Beside the rounded matrix and in it: near what float32 gives, and the change is no noise."""
    exact = linear()
    with torch.no_grad():
        base: Any = {
            "packed": lambda: PackedLinear(pack(exact.weight), "Q8_0", exact.bias),
            "int8": lambda: Int8Linear.from_float(exact.weight, exact.bias),
            "bfloat16": lambda: linear().requires_grad_(False).bfloat16(),
        }[kind]()
        if kind == "bfloat16":
            base.load_state_dict(exact.state_dict())
        assert matrix_shape(base) == (sum(SIZES), COLUMNS)
        layer = adapted(base)
        x = torch.randn(7, COLUMNS)
        given = x if kind == "packed" else x.bfloat16()
        expected = nn.functional.linear(x, changed(exact.weight, layer), exact.bias)
        plain = exact(x)
        beside, merged = layer(given).float(), layer.merged()(given).float()
    size = (expected - plain).norm()
    assert (beside - expected).norm() < 0.03 * size
    assert (merged - expected).norm() < 0.03 * size


def test_merging_leaves_the_model_as_it_was_built() -> None:
    model = nn.Sequential(linear(), nn.Tanh(), linear())
    names = list(model.state_dict())
    model.requires_grad_(False)
    model[0] = adapted(model[0])
    x = torch.randn(3, COLUMNS)
    expected = model(x)
    assert [name for name, _ in lora_layers(model)] == ["0"]
    merge(model)
    assert list(model.state_dict()) == names and all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_under_autocast() -> None:
    layer, x = adapted(linear()), torch.randn(3, COLUMNS)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.03, atol=0.03)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in lora_parameters(layer))
