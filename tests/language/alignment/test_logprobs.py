"""Log-probabilities in chunks against PyTorch's own log-softmax."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trivium.data import IGNORE
from trivium.language.alignment.logprobs import said, token_logprobs
from trivium.language.transformer import Transformer, TransformerConfig

ROWS, WIDTH, VOCAB = 37, 16, 101


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=rng, dtype=dtype).requires_grad_()
        for shape in ((ROWS, WIDTH), (VOCAB, WIDTH), (VOCAB,))
    )
    return x, weight, bias, torch.randint(VOCAB, (ROWS,), generator=rng)


def plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    z = x @ weight.t()
    log_p = torch.log_softmax((z if bias is None else z + bias) / temperature, -1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("chunk", [1, 5, 16, 1000, None])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("trained", ["features", "all"])
def test_values_and_gradients_are_those_of_pytorch(
    chunk: int | None, with_bias: bool, temperature: float, trained: str
) -> None:
    """Each row has a gradient of its own; within 1e-5 of the largest, in float32."""
    x, weight, bias, targets = problem()
    if trained == "features":
        weight, bias = weight.detach(), bias.detach()
    b = bias if with_bias else None
    ours = token_logprobs(
        x, weight, targets, bias=b, temperature=temperature, entropy=True, chunk=chunk
    )
    theirs = plain(x, weight, b, targets, temperature)
    factors = [torch.linspace(-1, 2, ROWS), torch.linspace(0.5, -0.5, ROWS)]
    leaves = [t for t in (x, weight, b) if t is not None and t.requires_grad]
    grads = []
    for values in (ours, theirs):
        for value, wanted in zip(values, theirs, strict=True):
            assert value is not None
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)
        loss = sum((f * v).sum() for f, v in zip(factors, values, strict=True) if v is not None)
        grads.append(torch.autograd.grad(loss, leaves))
    for mine, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("trained", ["features", "all"])
def test_gradients_are_the_slopes_of_the_values(trained: str) -> None:
    x, weight, bias, targets = problem(torch.float64)
    if trained == "features":
        weight, bias = weight.detach(), bias.detach()

    def values(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return token_logprobs(x, weight, targets, bias=bias, entropy=True, chunk=8)

    assert torch.autograd.gradcheck(values, (x, weight, bias))


def test_without_gradients_nothing_is_kept() -> None:
    x, weight, _, targets = problem()
    with torch.no_grad():
        logprobs, entropies = token_logprobs(x, weight, targets, chunk=8)
    assert not logprobs.requires_grad and entropies is None
    torch.testing.assert_close(logprobs, plain(x, weight, None, targets, 1.0)[0].detach())


def test_under_autocast_values_are_in_float32() -> None:
    x, weight, _, targets = problem()
    exact = plain(x, weight, None, targets, 1.0)[0]
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = token_logprobs(x, weight.detach(), targets, chunk=8)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, exact, rtol=0.02, atol=0.1)
    ours.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives back."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("trained", [True, False])
def test_the_logits_of_all_rows_never_exist(trained: bool) -> None:
    rows, width, vocab, chunk = 512, 8, 300, 32
    x = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(vocab, width, requires_grad=trained)
    with Largest() as seen:
        values, entropies = token_logprobs(
            x, weight, torch.randint(vocab, (rows,)), entropy=True, chunk=chunk
        )
        assert entropies is not None
        (values + entropies).sum().backward()
    assert seen.elements == chunk * vocab


def test_a_batch_says_what_its_rows_say_alone() -> None:
    """Rows of answers, padded on the right, as batches of preferences are."""
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=VOCAB, context=16, width=WIDTH, layers=2, heads=2, hidden=32
    )
    model = Transformer(config)
    ids = torch.randint(VOCAB, (3, 12))
    targets = torch.full_like(ids, IGNORE)
    for row, (first, last) in enumerate([(3, 9), (5, 11), (1, 4)]):
        targets[row, first:last] = ids[row, first + 1 : last + 1]
    found = said(model, {"ids": ids, "targets": targets}, entropy=True)
    assert found.rows.tolist() == [0] * 6 + [1] * 6 + [2] * 3
    assert found.entropy is not None
    sums = []
    for row in range(3):
        log_p = torch.log_softmax(model(ids[row : row + 1]), -1)[0]
        at = targets[row] != IGNORE
        sums.append(log_p[at].gather(1, targets[row, at, None]).sum())
        entropy = -(log_p[at].exp() * log_p[at]).sum(-1)
        torch.testing.assert_close(found.entropy[found.rows == row], entropy)
    torch.testing.assert_close(found.of_rows(3), torch.stack(sums))
