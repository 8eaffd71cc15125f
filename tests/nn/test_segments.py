"""Attention among packed texts against attention to each text alone."""

import inspect
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
    """What PyTorch documents of its kernel, (N, H, D) each, written out."""
    assert cu_seq_q.dtype == torch.int32 and enable_gqa == (query.shape[1] != key.shape[1])
    behind, ahead = window_size
    parts = []
    for first, last in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        assert last - first <= max_q == max_k
        a, b, c = (x[first:last].transpose(0, 1) for x in (query, key, value))
        b, c = (x.repeat_interleave(len(a) // len(x), 0) for x in (b, c))
        at = torch.arange(last - first)
        gap = at[:, None] - at
        seen = (gap <= behind if behind >= 0 else gap > -(10**9)) & (
            -gap <= ahead if ahead >= 0 else gap > -(10**9)
        )
        scores = (a @ b.mT * (scale or query.shape[2] ** -0.5)).masked_fill(~seen, -torch.inf)
        parts.append((scores.softmax(-1) @ c).transpose(0, 1))
    return torch.cat(parts)


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


def test_the_kernel_takes_what_it_is_told() -> None:
    """The stand-in above has the parameters that the installed PyTorch gives its own."""
    kernel = module._kernel()
    if kernel is None:
        pytest.skip("this PyTorch has no such kernel that we could use: tiles are used instead")
    theirs, ours = (inspect.signature(f).parameters for f in (kernel, plain_varlen))
    assert list(theirs)[:7] == list(ours)[:7] and ours.keys() <= theirs.keys()


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
