"""The shared blocks against their definitions, written out."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trivium.errors import UsageError
from trivium.nn.attention import KVCache, SelfAttention, attend
from trivium.nn.mlp import MLP, GeGLU, SwiGLU
from trivium.nn.norms import QKNorm, RMSNorm
from trivium.nn.positions import (
    Rotary,
    WindowedRotary,
    frequencies,
    rotate,
    rotate_full,
    rotate_window,
)
from trivium.nn.quantized import FEW_ROWS, Int8Linear


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def naive_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    *,
    window: int | None = None,
    real: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(QKᵀ·scale)V, head by head and query by query."""
    y = torch.empty_like(q)
    share = q.shape[1] // k.shape[1]
    past = k.shape[2] - q.shape[2]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(q.shape[2]):
                last = past + t if causal else k.shape[2] - 1
                first = 0 if window is None else max(0, last - window + 1)
                seen = [s for s in range(first, last + 1) if real is None or real[b, s]]
                scores = k[b, h // share, seen] @ q[b, h, t] * (scale or q.shape[3] ** -0.5)
                y[b, h, t] = scores.softmax(0) @ v[b, h // share, seen]
    return y


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("count", "span"), [(5, 5), (1, 6), (3, 7), (1, 1)])
def test_attend(count: int, span: int, groups: int, causal: bool) -> None:
    q = torch.randn(2, 4, count, 8)
    k, v = torch.randn(2, groups, span, 8), torch.randn(2, groups, span, 8)
    torch.testing.assert_close(
        attend(q, k, v, causal=causal), naive_attention(q, k, v, causal), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("window", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(("count", "span"), [(7, 7), (1, 7), (3, 7), (2, 3), (1, 1)])
def test_a_window(count: int, span: int, window: int, groups: int) -> None:
    q = torch.randn(2, 4, count, 8)
    k, v = torch.randn(2, groups, span, 8), torch.randn(2, groups, span, 8)
    torch.testing.assert_close(
        attend(q, k, v, causal=True, window=window, scale=0.7),
        naive_attention(q, k, v, True, window=window, scale=0.7),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("count", "span"), [(5, 5), (1, 5), (2, 5)])
def test_nobody_looks_at_padding(count: int, span: int, causal: bool) -> None:
    q = torch.randn(3, 4, count, 8)
    k, v = torch.randn(3, 2, span, 8), torch.randn(3, 2, span, 8)
    real = torch.arange(span) < torch.tensor([[span], [3], [1]])
    torch.testing.assert_close(
        attend(q, k, v, causal=causal, real=real),
        naive_attention(q, k, v, causal, real=real),
        rtol=1e-5,
        atol=1e-6,
    )


def test_attention_never_looks_ahead() -> None:
    layer = SelfAttention(16, 4, groups=2)
    x = torch.randn(1, 6, 16)
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(layer(x)[:, :4], layer(changed)[:, :4], rtol=0, atol=1e-6)
    assert not torch.allclose(layer(x)[:, 4:], layer(changed)[:, 4:])


def test_the_cache_grows_copies_and_forgets() -> None:
    cache = KVCache()
    k, v = torch.randn(2, 1, 2, 700, 4)
    for start in range(0, 700, 100):
        piece = slice(start, start + 100)
        all_k, all_v = cache.update(0, k[:, :, piece], v[:, :, piece])
        cache.advance(100)
        torch.testing.assert_close(all_k, k[:, :, : start + 100])
        torch.testing.assert_close(all_v, v[:, :, : start + 100])
    twin = cache.copy(150)
    cache.truncate(10)
    twin_k, _ = twin.update(0, k[:, :, 150:151] * 0, v[:, :, 150:151])
    torch.testing.assert_close(twin_k[:, :, :150], k[:, :, :150])
    own_k, _ = cache.update(0, k[:, :, 10:12], v[:, :, 10:12])
    torch.testing.assert_close(own_k, k[:, :, :12])


def test_rotation_depends_on_the_distance_alone() -> None:
    rotary = Rotary(8)
    x = torch.randn(1, 40, 1, 8)

    def turned(vector: Tensor, position: int) -> Tensor:
        _, angles = rotary(torch.zeros(1, 1, 8), position)
        assert angles is not None
        return rotate(vector, angles)[0, 0, 0]

    q, k = x[:, :1], x[:, 1:2]
    near = turned(q, 5) @ turned(k, 2)
    far = turned(q, 1005) @ turned(k, 1002)
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(turned(q, 0), q[0, 0, 0])
    assert turned(q, 77).norm() == pytest.approx(float(q.norm()), rel=1e-5)


def test_unknown_scaling_is_named() -> None:
    with pytest.raises(UsageError, match="yarn"):
        frequencies(8, 1e4, {"rope_type": "yarn", "factor": 4.0})


def test_rms_norm() -> None:
    x = torch.randn(3, 5, 16)
    norm = RMSNorm(16, eps=1e-6)
    nn.init.normal_(norm.weight)
    expected = norm.weight * x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(norm(x), expected)


def test_qk_norm() -> None:
    """Each head on its own; the queries with their gain, the keys with theirs."""
    norm = QKNorm(3, 2, 8, eps=1e-6)
    nn.init.normal_(norm.q)
    nn.init.normal_(norm.k)
    x = torch.randn(2, 4, 5, 8)
    unit = x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6)
    expected = torch.cat([unit[:, :, :3] * norm.q, unit[:, :, 3:] * norm.k], 2)
    torch.testing.assert_close(norm(x), expected)


def test_two_sets_of_angles() -> None:
    full, window = Rotary(8, 1e6), Rotary(8, 1e2)
    x, angles = WindowedRotary(full, window)(torch.randn(1, 5, 16), 3)
    heads = torch.randn(1, 5, 2, 8)
    for turn, rotary in ((rotate_full, full), (rotate_window, window)):
        own = rotary(x, 3)[1]
        assert own is not None
        assert torch.equal(turn(heads, angles), rotate(heads, own))
    assert not torch.equal(rotate_full(heads, angles), rotate_window(heads, angles))


def test_mlps() -> None:
    x = torch.randn(2, 16)
    gated = SwiGLU(16, 24)
    gate, up = gated.gate_up.weight.chunk(2)
    expected = (nn.functional.silu(x @ gate.T) * (x @ up.T)) @ gated.down.weight.T
    torch.testing.assert_close(gated(x), expected)
    gated = GeGLU(16, 24)
    gate, up = gated.gate_up.weight.chunk(2)
    opened = nn.functional.gelu(x @ gate.T, approximate="tanh")
    torch.testing.assert_close(gated(x), (opened * (x @ up.T)) @ gated.down.weight.T)
    plain = MLP(16, 24, approximate="none")
    torch.testing.assert_close(plain(x), plain.down(nn.functional.gelu(plain.up(x))))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, 40])
def test_int8_linear(rows: int, bias: bool) -> None:
    """Within the rounding of 8-bit weights and bfloat16 sums, by either path."""
    exact = nn.Linear(64, 48, bias=bias)
    rounded = Int8Linear.from_float(exact.weight.data, exact.bias.data if bias else None)
    x = torch.randn(2, rows, 64)[:, :rows]
    wanted = exact(x)
    error = (rounded(x).float() - wanted).abs().max() / wanted.abs().max()
    assert rounded(x).shape == wanted.shape and error < 0.02


def test_int8_rounds_to_the_nearest_step() -> None:
    weight = torch.randn(48, 64)
    rounded = Int8Linear.from_float(weight)
    back = rounded.weight.float() * rounded.scale.float()[:, None]
    step = rounded.scale.float()[:, None]
    # The largest weight of a row may be clamped when its scale was rounded down.
    assert ((back - weight).abs() <= step * 1.001).all()
    assert ((back - weight).abs() <= step * 0.501).float().mean() > 0.97
    torch.testing.assert_close(
        rounded.rows(torch.tensor([3, 3])).float()[0], back[3], rtol=0.01, atol=0.01
    )


def test_a_row_of_zeros_stays_zero() -> None:
    rounded = Int8Linear.from_float(torch.zeros(4, 16))
    assert torch.equal(rounded(torch.randn(2, 16)), torch.zeros(2, 4, dtype=torch.bfloat16))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_short_texts_are_trained_by_two_products(
    causal: bool, groups: int, scale: float | None
) -> None:
    """In bfloat16 on a CPU: as near to the float64 result, and its gradients, as the fused kernel
    is, but for a factor of 1.5."""
    torch.manual_seed(0)
    exact = [torch.randn(2, heads, 17, 8, dtype=torch.float64) for heads in (6, groups, groups)]
    direction = torch.randn(2, 6, 17, 8, dtype=torch.float64)

    def run(kind: torch.dtype, function: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [x.to(kind, copy=True).requires_grad_() for x in exact]
        y = function(*leaves)
        y.backward(direction.to(kind))
        return [y.detach().double(), *(x.grad.double() for x in leaves if x.grad is not None)]

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=True
        )

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, causal=causal, scale=scale)

    truth = run(torch.float64, fused)
    for mine, theirs, right in zip(
        run(torch.bfloat16, ours), run(torch.bfloat16, fused), truth, strict=True
    ):
        assert (mine - right).norm() <= 1.5 * (theirs - right).norm() + 1e-3 * right.norm()
