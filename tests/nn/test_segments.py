"""Attention among packed texts against attention to each text alone."""

import inspect
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trivium.nn import segments as module
from trivium.nn.attention import attend
from trivium.nn.segments import PADDING, SHARED, Segments

# Lengths of the texts of each row; the rest of a row is padding.
ROWS: dict[str, list[list[int]]] = {
    "two": [[3, 4]],
    "padded": [[3, 2], [7], [1, 1, 1]],
    "single-tokens": [[1] * 7],
    "one-row-is-one-text": [[7], [2, 5]],
    "long": [[40, 1, 1, 70, 3, 5], [113, 7]],
    "nothing-real": [[], [2, 3]],
}


def numbers_of(rows: list[list[int]]) -> Tensor:
    width = max(7, *map(sum, rows))
    made = torch.full((len(rows), width), PADDING)
    for row, lengths in zip(made, rows, strict=True):
        row[: sum(lengths)] = torch.arange(len(lengths)).repeat_interleave(
            torch.tensor(lengths, dtype=torch.long)
        )
    return made


def spans(rows: list[list[int]]) -> list[tuple[int, slice]]:
    found = []
    for i, lengths in enumerate(rows):
        for first, length in zip(torch.tensor([0, *lengths]).cumsum(0), lengths, strict=False):
            found.append((i, slice(int(first), int(first) + length)))
    return found


@pytest.fixture(params=ROWS)
def rows(request: pytest.FixtureRequest) -> list[list[int]]:
    return ROWS[request.param]


KINDS = [(True, None), (True, 3), (False, None)]  # causal, window


def heads_of(rows: list[list[int]], groups: int) -> list[Tensor]:
    torch.manual_seed(0)
    shape = numbers_of(rows).shape
    return [
        torch.randn(shape[0], count, shape[1], 8, dtype=torch.float64, requires_grad=True)
        for count in (4, groups, groups)
    ]


@pytest.mark.parametrize(("causal", "window"), KINDS)
@pytest.mark.parametrize("groups", [2, 4])
def test_each_text_is_alone(
    rows: list[list[int]], groups: int, causal: bool, window: int | None
) -> None:
    """Values and gradients, within 1e-12 in float64."""
    qkv = heads_of(rows, groups)
    kind: dict[str, Any] = {"causal": causal, "window": window, "scale": 0.3}
    y = Segments(numbers_of(rows)).attend(*qkv, **kind)
    expected = torch.zeros_like(y)
    for row, span in spans(rows):
        expected[row : row + 1, :, span] = attend(*(x[row : row + 1, :, span] for x in qkv), **kind)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    outer = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, qkv, outer), torch.autograd.grad(expected, qkv, outer), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_positions_begin_anew(rows: list[list[int]]) -> None:
    positions = Segments(numbers_of(rows)).positions
    for row, span in spans(rows):
        assert positions[row, span].tolist() == list(range(span.stop - span.start))
    assert int(positions.max()) < positions.shape[1]


def test_a_number_that_comes_again_is_another_text() -> None:
    assert Segments(torch.tensor([[0, 0, 1, 0, 0]])).positions.tolist() == [[0, 1, 0, 0, 1]]


@pytest.mark.parametrize("numbers", [[[0, 0, 0]], [[4, 4], [-1, -1]]])
def test_rows_of_one_text_are_no_segments(numbers: list[list[int]]) -> None:
    assert Segments.of(torch.tensor(numbers)) is None
    assert Segments.of(torch.tensor([[0, 0, 1], *([[0, 0, 0]] * 2)])) is not None


SHARED_ROWS = torch.tensor(
    [
        [SHARED, SHARED, SHARED, 0, 0, 1, 1, 1, 1, PADDING],
        [SHARED, SHARED, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 2, 2, 2, 2],
        [SHARED, 0, 1, 2, PADDING, PADDING, PADDING, PADDING, PADDING, PADDING],
    ]
)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_texts_that_share_their_beginning(
    dtype: torch.dtype, atol: float, window: int | None
) -> None:
    """Each is as beginning and text in a row of their own. In bfloat16, gradients of the beginning
    are summed in another order."""
    packed = Segments.of(SHARED_ROWS)
    assert packed is not None
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, heads, 10, 8, dtype=dtype, requires_grad=True) for heads in (4, 2, 2))
    y = packed.attend(q, k, v, causal=True, window=window)
    expected = torch.zeros_like(y)
    for row, numbers in enumerate(SHARED_ROWS):
        for text in numbers.unique():
            if text != PADDING:
                begins = [] if text == SHARED else (numbers == SHARED).nonzero().flatten().tolist()
                own = (numbers == text).nonzero().flatten().tolist()
                whole = [x[row : row + 1, :, [*begins, *own]] for x in (q, k, v)]
                attended = attend(*whole, causal=True, window=window)[0, :, len(begins) :]
                expected[row, :, own] = attended
                positions = packed.positions[row, own].tolist()
                assert positions == list(range(len(begins), len(begins) + len(own)))
    torch.testing.assert_close(y, expected, rtol=0, atol=atol)
    outer = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, (q, k, v), outer),
        torch.autograd.grad(expected, (q, k, v), outer),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def test_a_long_row_of_short_texts_is_cheap() -> None:
    """The largest thing that is made is of the size of the keys, not of (T, T)."""
    lengths = [5] * 100
    qkv = heads_of([lengths], 4)
    with Largest() as seen:
        Segments(numbers_of([lengths])).attend(*qkv, causal=True).sum().backward()
    assert 0 < seen.elements <= qkv[0].numel() < 500**2


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives back."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What PyTorch documents of its kernel, (N, H, D) each, written out: the queries of a text are
    the last of its keys."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa == (query.shape[1] != key.shape[1])
    behind, ahead = window_size
    parts = []
    for own, seen_ in zip(pairs(cu_seq_q), pairs(cu_seq_k), strict=True):
        a = query[slice(*own)].transpose(0, 1)
        b, c = (x[slice(*seen_)].transpose(0, 1) for x in (key, value))
        assert a.shape[1] <= max_q and b.shape[1] <= max_k
        b, c = (x.repeat_interleave(len(a) // len(x), 0) for x in (b, c))
        at = torch.arange(b.shape[1])
        gap = at[-a.shape[1] :, None] - at
        seen = (gap <= behind if behind >= 0 else gap > -(10**9)) & (
            -gap <= ahead if ahead >= 0 else gap > -(10**9)
        )
        scores = (a @ b.mT * (scale or query.shape[2] ** -0.5)).masked_fill(~seen, -torch.inf)
        parts.append((scores.softmax(-1) @ c).transpose(0, 1))
    return torch.cat(parts)


def pairs(bounds: Tensor) -> list[tuple[int, int]]:
    return list(pairwise(bounds.tolist()))


@pytest.mark.parametrize(("causal", "window"), KINDS)
@pytest.mark.parametrize("groups", [2, 4])
def test_what_the_kernel_of_a_gpu_is_told(
    rows: list[list[int]],
    groups: int,
    causal: bool,
    window: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    qkv, made = heads_of(rows, groups), Segments(numbers_of(rows))
    expected = made.attend(*qkv, causal=causal, window=window, scale=0.3)
    monkeypatch.setattr(module, "_varlen", lambda v: plain_varlen)
    y = made.attend(*qkv, causal=causal, window=window, scale=0.3)
    for row, span in spans(rows):  # padding may be anything
        torch.testing.assert_close(y[row, :, span], expected[row, :, span], rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [None, 3])
def test_what_the_kernel_is_told_of_shared_beginnings(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, within 1e-12 in float64."""
    packed = Segments.of(SHARED_ROWS)
    assert packed is not None
    torch.manual_seed(0)
    qkv = [torch.randn(4, heads, 10, 8, requires_grad=True).double() for heads in (4, 2, 2)]
    real = (SHARED_ROWS != PADDING)[:, None, :, None]
    expected = packed.attend(*qkv, causal=True, window=window) * real
    monkeypatch.setattr(module, "_varlen", lambda v: plain_varlen)
    y = packed.attend(*qkv, causal=True, window=window) * real
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    outer = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, qkv, outer), torch.autograd.grad(expected, qkv, outer), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_the_kernel_takes_what_it_is_told() -> None:
    """The stand-in above has the parameters that the installed PyTorch gives its own."""
    kernel = module._kernel()
    if kernel is None:
        pytest.skip("this PyTorch has no such kernel that we could use: tiles are used instead")
    if "enable_gqa" not in inspect.signature(kernel).parameters:
        pytest.skip("this PyTorch's kernel wants as many heads of keys as of queries")
    theirs, ours = (inspect.signature(f).parameters for f in (kernel, plain_varlen))
    assert list(theirs)[:7] == list(ours)[:7] and ours.keys() <= theirs.keys()


def test_a_kernel_that_wants_as_many_heads_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = Segments.of(SHARED_ROWS)
    assert packed is not None
    qkv = [torch.randn(4, heads, 10, 8, dtype=torch.float64) for heads in (4, 2, 2)]
    real = (SHARED_ROWS != PADDING)[:, None, :, None]
    expected = packed.attend(*qkv, causal=True) * real

    def older(q: Tensor, k: Tensor, v: Tensor, *where: Any, **more: Any) -> Tensor:
        assert k.shape[1] == v.shape[1] == q.shape[1]
        return plain_varlen(q, k, v, *where, **more)

    monkeypatch.setattr(module, "_varlen", lambda v: module._with_heads_repeated(older))
    y = packed.attend(*qkv, causal=True) * real
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize(("causal", "window"), KINDS)
@pytest.mark.parametrize("groups", [2, 4])
def test_on_a_gpu(rows: list[list[int]], groups: int, causal: bool, window: int | None) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    wide = [torch.cat([x, x], -1) for x in heads_of(rows, groups)]  # 16 channels
    made = Segments(numbers_of(rows).cuda())
    half = [x.detach().cuda().bfloat16().requires_grad_() for x in wide]
    y = made.attend(*half, causal=causal, window=window)
    expected = Segments(numbers_of(rows)).attend(
        *(x.detach().cpu().double() for x in half), causal=causal, window=window
    )
    for row, span in spans(rows):
        torch.testing.assert_close(
            y[row, :, span].cpu().double(), expected[row, :, span], rtol=2e-2, atol=2e-2
        )
    y.float().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in half)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 3])
def test_shared_beginnings_on_a_gpu(window: int | None) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    half = [torch.randn(4, heads, 10, 16, dtype=torch.bfloat16) for heads in (4, 2, 2)]
    outer = torch.randn(4, 4, 10, 16) * (SHARED_ROWS != PADDING)[:, None, :, None]
    found = []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float64)):
        packed = Segments.of(SHARED_ROWS.to(device))
        assert packed is not None
        qkv = [x.to(device, dtype).requires_grad_() for x in half]
        y = packed.attend(*qkv, causal=True, window=window)
        weighted = (y * outer.to(device, dtype)).sum()
        real = y * (outer.to(device) != 0)
        found.append([real, *torch.autograd.grad(weighted, qkv)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=3e-2, atol=3e-2)
