"""Chunked cross-entropy against PyTorch's own, and against the clock of its memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from trivium.data import IGNORE
from trivium.language.losses import (
    cross_entropy,
    masked_token,
    next_token,
    softmax_and_gradient,
)
from trivium.language.transformer import Transformer, TransformerConfig

ROWS, WIDTH, VOCAB = 37, 16, 101
CHUNKS = [1, 5, 16, 37, 1000, None]
TINY = {
    "vocab_size": VOCAB,
    "context": 16,
    "width": WIDTH,
    "layers": 2,
    "heads": 2,
    "hidden": 32,
}


def problem(
    dtype: torch.dtype = torch.float32, *, bias: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """features, weight, bias, targets (some IGNORE) and weights (some 0)."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=dtype).requires_grad_()

    targets = torch.randint(VOCAB, (ROWS,), generator=rng)
    targets[::4] = IGNORE
    weights = torch.rand(ROWS, generator=rng, dtype=dtype)
    weights[1] = 0
    return (
        normal(ROWS, WIDTH),
        normal(VOCAB, WIDTH),
        normal(VOCAB) if bias else None,
        targets,
        weights,
    )


def plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor | None
) -> Tensor:
    each = F.cross_entropy(
        F.linear(x, weight, bias), targets, ignore_index=IGNORE, reduction="none"
    )
    return (each if weights is None else each * weights).sum()


def grads(loss: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [t for t in tensors if t is not None]))


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradients_are_those_of_pytorch(
    chunk: int | None, weighted: bool, bias: bool
) -> None:
    """Within 1e-5 of the largest, in float32: sums are made in another order."""
    x, weight, b, targets, weights = problem(bias=bias)
    w = weights if weighted else None
    loss = cross_entropy(x, weight, targets, bias=b, weights=w, chunk=chunk)
    wanted = plain(x, weight, b, targets, w)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    for ours, theirs in zip(
        grads(3 * loss, x, weight, b), grads(3 * wanted, x, weight, b), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("chunk", [5, None])
def test_gradients_are_the_slopes_of_the_loss(chunk: int | None) -> None:
    x, weight, bias, targets, weights = problem(torch.float64, bias=True)

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return cross_entropy(x, weight, targets, bias=bias, weights=weights, chunk=chunk)

    assert torch.autograd.gradcheck(loss, (x, weight, bias))


def test_bfloat16_products_are_summed_in_float32() -> None:
    """Under autocast: as near to the float64 loss as PyTorch's own, and the master weights get
    gradients in float32."""
    x, weight, _, targets, _ = problem(seed=1)
    exact = plain(x.double(), weight.double(), None, targets, None)
    truth = grads(exact, x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        ours = cross_entropy(x, weight, targets, chunk=8)
        theirs = F.cross_entropy(
            F.linear(x, weight).float(), targets, ignore_index=IGNORE, reduction="sum"
        )
    assert ours.dtype == torch.float32
    assert abs(ours - exact) <= 1.5 * abs(theirs - exact) + 1e-3 * exact
    for mine, peer, right in zip(
        grads(ours, x, weight), grads(theirs, x, weight), truth, strict=True
    ):
        assert mine.dtype == torch.float32
        assert (mine - right).norm() <= 1.1 * (peer - right).norm()


def test_parameters_in_bfloat16_are_served() -> None:
    x, weight, _, targets, _ = problem(seed=2)
    small = [t.detach().bfloat16().requires_grad_() for t in (x, weight)]
    loss = cross_entropy(*small, targets, chunk=8)
    wanted = plain(small[0].float(), small[1].float(), None, targets, None)
    torch.testing.assert_close(loss, wanted, rtol=5e-3, atol=0)
    for ours, theirs in zip(grads(loss, *small), grads(wanted, *small), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()


def test_huge_logits_overflow_nowhere() -> None:
    x, weight, _, targets, _ = problem()
    ours, theirs = (
        f(1e4)
        for f in (
            lambda k: cross_entropy(k * x, weight, targets, chunk=8),
            lambda k: plain(k * x, weight, None, targets, None),
        )
    )
    assert torch.isfinite(ours)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows", [0, ROWS])
def test_nothing_to_learn_costs_nothing(rows: int) -> None:
    x, weight, _, targets, _ = problem()
    loss = cross_entropy(x[:rows], weight, torch.full_like(targets[:rows], IGNORE))
    assert loss == 0
    assert all(not g.any() for g in grads(loss, x, weight))


def test_the_softmax_for_a_gpu_is_the_same() -> None:
    """What a compiler fuses there, run here without one."""
    x, weight, _, targets, weights = problem()
    z = (x @ weight.t()).detach().requires_grad_()
    for w in (None, weights):
        each = F.cross_entropy(z, targets, ignore_index=IGNORE, reduction="none")
        wanted = (each if w is None else each * w).sum()
        loss, dz = softmax_and_gradient(z.detach(), targets, w)
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(dz, grads(wanted, z)[0])


# -- models ---------------------------------------------------------------------------------------


def batch(*, ignored: int = 3, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (3, 9), generator=rng)
    targets = ids.roll(-1, 1)
    targets[:, -1] = IGNORE
    targets[0, :ignored] = IGNORE
    return {"ids": ids, "targets": targets}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("loss_of", [next_token, masked_token])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_learns_what_full_logits_teach(loss_of: Callable[..., Any], tied: bool) -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**TINY, tied=tied))
    data = batch()
    loss = loss_of(model, data)
    wanted = F.cross_entropy(
        model(data["ids"]).flatten(0, 1), data["targets"].flatten(), reduction="sum"
    )
    torch.testing.assert_close(loss.total, wanted)
    assert loss.weight == (data["targets"] != IGNORE).sum()
    loss.total.backward()
    ours = gradients(model)
    wanted.backward()
    theirs = gradients(model)
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=0, atol=1e-5 * float(grad.abs().max()))


def test_weights_of_tokens() -> None:
    model = Transformer(TransformerConfig(**TINY))
    data = batch()
    twice = next_token(model, data | {"weights": torch.full(data["ids"].shape, 2.0)})
    once = next_token(model, data)
    torch.testing.assert_close(twice.total, 2 * once.total)
    assert twice.weight == 2 * once.weight


def test_accumulation_and_a_second_backward_add_up() -> None:
    model = Transformer(TransformerConfig(**TINY))
    first, second = batch(seed=0), batch(seed=1)
    joined = {key: torch.cat([first[key], second[key]]) for key in first}
    next_token(model, joined).total.backward()
    whole = gradients(model)
    for part in (first, second):
        next_token(model, part).total.backward()
    parts = gradients(model)
    loss = next_token(model, joined).total
    loss.backward(retain_graph=True)
    loss.backward()
    twice = gradients(model)
    for name, grad in whole.items():
        scale = 1e-5 * float(grad.abs().max())
        torch.testing.assert_close(parts[name], grad, rtol=0, atol=scale)
        torch.testing.assert_close(twice[name], 2 * grad, rtol=0, atol=2 * scale)


def test_recomputed_under_checkpointing() -> None:
    x, weight, _, targets, _ = problem()

    def loss(x: Tensor) -> Tensor:
        return cross_entropy(x.tanh(), weight, targets, chunk=8)

    again = checkpoint(loss, x, use_reentrant=False)
    for ours, theirs in zip(grads(again, x, weight), grads(loss(x), x, weight), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", ["features", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    x, weight, _, targets, _ = problem()
    (x if frozen == "features" else weight).requires_grad_(False)
    cross_entropy(x, weight, targets).backward()
    assert (x.grad is None) == (frozen == "features")
    assert (weight.grad is None) == (frozen == "weight")


# -- memory ---------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives back."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("grad", [True, False])
def test_the_logits_of_all_rows_never_exist(grad: bool) -> None:
    rows, width, vocab, chunk = 512, 8, 300, 32
    x = torch.randn(rows, width, requires_grad=grad)
    weight = torch.randn(vocab, width, requires_grad=grad)
    targets = torch.randint(vocab, (rows,))
    with Largest() as seen:
        loss = cross_entropy(x, weight, targets, chunk=chunk)
        if grad:
            loss.backward()
    assert seen.elements == chunk * vocab  # the largest thing there ever was
    with Largest() as seen:
        plain(x, weight, None, targets, None)
    assert seen.elements == rows * vocab  # and the meter does see them


def test_a_masked_model_has_logits_of_masked_tokens_only() -> None:
    model = Transformer(TransformerConfig(**TINY, causal=False))
    data = batch(ignored=9)
    data["targets"][1:] = IGNORE
    data["targets"][2, 4] = 7
    with Largest() as seen:
        masked_token(model, data).total.backward()
    assert seen.elements < data["ids"].numel() * VOCAB


# -- sharded weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_a_sharded_model_learns_the_same(tied: bool, tmp_path: Path) -> None:
    """`fully_shard` of every block and of the root, by a single process: the root stays gathered
    after `features`, so that the loss finds its head whole, and its gradient is reduced."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import DTensor

    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**TINY, tied=tied))
    next_token(model, batch()).total.backward()
    wanted = gradients(model)
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        for block in model.layers:
            fully_shard(block)
        fully_shard(model)
        register_fsdp_forward_method(model, "features")
        next_token(model, batch()).total.backward()
        found = gradients(model)
        assert found.keys() == wanted.keys()
        for name, grad in found.items():
            assert isinstance(grad, DTensor), name
            whole, peer = grad.full_tensor(), wanted[name]
            torch.testing.assert_close(whole, peer, rtol=0, atol=1e-5 * float(peer.abs().max()))
    finally:
        dist.destroy_process_group()
