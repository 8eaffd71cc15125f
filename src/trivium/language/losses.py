"""Cross-entropy of a language model without the logits of a whole batch.

    loss = Σ_n w_n · (log Σ_v exp z_nv − z_n,target(n)),     z = features · Wᵀ + b

The logits z (N, V) of N tokens and their gradient are the largest tensors of training. Here they
exist for a few rows at a time only: while a chunk's logits are there, the loss, the gradient of its
features and its share of the gradient of W are computed, and the same memory serves the next chunk
(as in Liger, Hsu et al. 2024, and Cut Your Losses, Wijmans et al. 2024). So the backward pass of
this operation is only a product with the incoming gradient.

A model is served when it is `Headed`: it gives the features before its head, and the head is a
matrix. Under FSDP the matrix has to be whole when the loss is computed, as it is if it belongs to
the root of `fully_shard`, which stays gathered after `features`.

N tokens, C width, V vocabulary, R rows of a chunk.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trivium.data import IGNORE
from trivium.train import Loss

CHUNK_BYTES = {"cpu": 128 << 20}  # of the logits of a chunk, in the precision of the products
CHUNK_BYTES_ELSEWHERE = 256 << 20
SOFTMAX_BYTES = {"cpu": 8 << 20}  # of those whose softmax is made at a time: a cache holds them


class Headed(Protocol):
    """What a language model has to have: logits = head(transform(features(ids))), with the
    embedding's matrix in place of a head that is None (a tied one). `transform` may be missing."""

    embedding: Any  # .weight (V, C), and maybe .bias (V,)
    head: Any  # nn.Linear with .weight (V, C) and .bias (V,) or None; or None

    def features(self, ids: Tensor, **context: Any) -> Tensor:
        """ids (B, T) → (B, T, C); `context` is what the batch says about them, such as segments."""
        ...


def next_token(model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
    """The sum of −ln p over the tokens that carry loss, and how many they are.

    batch: ids (B, T), targets (B, T) with IGNORE where nothing is learnt; optional weights (B, T) ≥
    0 that a token's loss is multiplied by (then the Loss weighs their sum), and segments (B, T),
    which texts are packed in a row.
    """
    # Picking out rows makes a GPU wait for the CPU; where nearly all rows count it does not pay.
    return _token_loss(model, batch, pick_rows=batch["ids"].device.type == "cpu")


def masked_token(model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
    """`next_token` for batches where few tokens carry loss, as of a masked language model or of
    answers in conversations: the head sees those tokens only."""
    return _token_loss(model, batch, pick_rows=True)


def _token_loss(model: nn.Module, batch: Mapping[str, Tensor], *, pick_rows: bool) -> Loss:
    headed = cast(Headed, model)
    context = {"segments": batch["segments"]} if "segments" in batch else {}
    features = headed.features(batch["ids"], **context).flatten(0, 1)
    targets, weights = batch["targets"].flatten(), batch.get("weights")
    counted = targets != IGNORE
    weights = None if weights is None else weights.flatten()
    total_weight = counted.sum() if weights is None else (weights * counted).sum()
    if pick_rows and not bool(counted.all()):
        rows = counted.nonzero().squeeze(1)
        features, targets = features[rows], targets[rows]
        weights = None if weights is None else weights[rows]
    return Loss(head_loss(model, features, targets, weights), total_weight)


def head_loss(
    model: nn.Module, features: Tensor, targets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """The summed cross-entropy of what the model's head says of features (N, C), where targets
    (N,) would be right."""
    if (transform := getattr(model, "transform", None)) is not None:
        features = transform(features)
    headed = cast(Headed, model)
    head = headed.embedding if headed.head is None else headed.head
    bias = getattr(head, "bias", None)
    return cross_entropy(features, head.weight, targets, bias=bias, weights=weights)


def cross_entropy(
    features: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    weights: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The summed cross-entropy, a scalar in float32 (float64 if the features are).

    features (N, C), weight (V, C), bias (V,), targets (N,) ids or IGNORE, weights (N,); about
    `chunk` rows of logits exist at a time (default: as many as fit CHUNK_BYTES). Under autocast the
    products are made in its precision; the softmax and all sums are in float32 at least.
    """
    grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (features, weight, bias)
    )
    function: Any = ChunkedCrossEntropy
    total: Tensor = function.apply(features, weight, bias, targets, weights, chunk, grad)
    return total


def chunk_rows(device: torch.device, vocabulary: int, dtype: torch.dtype = torch.float32) -> int:
    """How many rows of logits may exist at a time."""
    limit = CHUNK_BYTES.get(device.type, CHUNK_BYTES_ELSEWHERE)
    return max(16, limit // (dtype.itemsize * vocabulary))


class ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one go over the chunks; only features, weight and bias get any."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor | None,
        chunk: int | None,
        grad: bool,
    ) -> Tensor:
        device = features.device.type
        dtype = torch.promote_types(features.dtype, weight.dtype)
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        chunk = chunk or chunk_rows(features.device, len(weight), dtype)
        wanted = [grad and need for need in ctx.needs_input_grad[:3]]
        with torch.autocast(device, enabled=False):
            total, grads = _sweep(features, weight, bias, targets, weights, chunk, dtype, wanted)
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = outer
        grads: tuple[Tensor | None, ...] = ctx.saved_tensors
        # A GPU would have to be waited for to know that there is nothing to multiply by.
        if scale.device.type != "cpu" or scale.item() != 1:
            grads = tuple(None if g is None else g * scale.to(g.dtype) for g in grads)
        return *grads, None, None, None, None


def _sweep(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor | None,
    chunk: int,
    dtype: torch.dtype,
    wanted: list[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, and the gradients that are wanted of features, weight and bias."""
    device, exact = features.device, torch.promote_types(dtype, torch.float32)
    d_features = torch.empty_like(features) if wanted[0] else None
    d_weight = torch.empty_like(weight, dtype=exact) if wanted[1] else None
    d_bias = torch.zeros(len(weight), dtype=exact, device=device) if wanted[2] else None
    total = torch.zeros((), dtype=exact, device=device)
    head = weight.to(dtype)
    count = max(1, round(len(features) / chunk))
    chunk = max(1, -(-len(features) // count))  # of about that many rows, but all alike
    space = Space(chunk, head, exact)
    softmax = _gradient_of_logits(device, any(wanted))
    for rows in parts(len(features), chunk):
        x = features[rows].to(dtype)
        z = torch.mm(x, head.t(), out=space.logits[: len(x)])
        if bias is not None:
            z += bias.to(dtype)
        y, w = targets[rows], None if weights is None else weights[rows]
        for part in parts(len(x), space.softmax_rows):
            total += softmax(z[part], space, y[part], None if w is None else w[part])
        if d_features is not None:
            _product(z, head, d_features[rows])
        if d_weight is not None:
            space.add_product(d_weight, z, x, first=rows.start == 0)
        if d_bias is not None:
            d_bias += z.sum(0, dtype=exact)
    if d_weight is not None:
        d_weight = d_weight.to(weight.dtype) if len(features) else torch.zeros_like(weight)
    if d_bias is not None and bias is not None:
        d_bias = d_bias.to(bias.dtype)
    return total, [d_features, d_weight, d_bias]


class Space:
    """Memory that all chunks share: to get fresh pages for each costs more than its softmax."""

    def __init__(self, rows: int, head: Tensor, exact: torch.dtype) -> None:
        self.logits = head.new_empty(rows, len(head))
        limit = SOFTMAX_BYTES.get(head.device.type)
        self.softmax_rows = rows if limit is None else max(1, limit // (4 * len(head)))
        # In half precision also a place for the softmax, and for the product that is summed.
        half, wide = head.dtype != exact, min(rows, self.softmax_rows)
        self._wide = head.new_empty(wide, len(head), dtype=exact) if half else None
        self._product = torch.empty_like(head) if half else None

    def widened(self, z: Tensor) -> Tensor:
        """The logits z (R, V) in the precision of sums: z itself if it has it."""
        return z if self._wide is None else self._wide[: len(z)].copy_(z)

    def add_product(self, total: Tensor, dz: Tensor, x: Tensor, first: bool) -> None:
        """total (V, C) += dzᵀ · x, of which the first is not added to anything"""
        if self._product is None:
            total.addmm_(dz.t(), x, beta=0 if first else 1)
            return
        product = torch.mm(dz.t(), x, out=self._product)
        if first:
            total.copy_(product)
        else:
            total += product


def parts(count: int, size: int) -> Iterator[slice]:
    """The slices of `size` that `count` things fall into."""
    return (slice(first, first + size) for first in range(0, count, size))


def _product(dz: Tensor, head: Tensor, out: Tensor) -> None:
    if out.dtype == head.dtype:
        torch.mm(dz, head, out=out)
    else:
        out.copy_(dz @ head)


Softmax = Callable[[Tensor, Space, Tensor, Tensor | None], Tensor]


def _softmax(z: Tensor, space: Space, target: Tensor, weights: Tensor | None) -> Tensor:
    """The loss of a chunk, whose logits z (R, V) are replaced by its gradient."""
    wide = space.widened(z)
    log_p = torch.log_softmax(wide, -1, out=wide)
    loss, counted = _loss(log_p, target, weights)
    dz = log_p.exp_()
    dz.scatter_add_(1, target.clamp(min=0)[:, None], torch.full_like(dz[:, :1], -1))
    if weights is not None or not bool(counted.all()):
        dz *= counted[:, None]
    z.copy_(dz)
    return loss


def _loss_only(z: Tensor, space: Space, target: Tensor, weights: Tensor | None) -> Tensor:
    wide = space.widened(z)
    return _loss(torch.log_softmax(wide, -1, out=wide), target, weights)[0]


def _loss(log_p: Tensor, target: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The summed loss, and what the gradient of each row is multiplied by."""
    counted = (target != IGNORE).to(log_p.dtype)
    if weights is not None:
        counted = counted * weights
    picked = log_p.gather(1, target.clamp(min=0)[:, None]).squeeze(1)
    return -(picked * counted).sum(), counted


def _fused_softmax(z: Tensor, space: Space, target: Tensor, weights: Tensor | None) -> Tensor:
    """`_softmax` for a GPU: one kernel reads the logits and writes their gradient."""
    fused = _compiled()
    if fused is None:
        return _softmax(z, space, target, weights)
    loss, dz = fused(z, target, weights)
    z.copy_(dz)
    return loss


@functools.cache
def _compiled() -> Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]] | None:
    """`softmax_and_gradient` as one kernel; None, said aloud, where PyTorch cannot compile."""
    fused = torch.compile(softmax_and_gradient, dynamic=True)
    try:
        fused(
            torch.zeros(2, 16, device="cuda"), torch.zeros(2, dtype=torch.long, device="cuda"), None
        )
    except Exception as error:  # of the compiler, of Triton, of the C compiler that it calls
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        warnings.warn(f"the loss is slower, since it cannot be compiled: {reason}", stacklevel=2)
        return None
    return fused


def softmax_and_gradient(
    z: Tensor, target: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss of a chunk and its gradient (R, V), in operations that a compiler can fuse."""
    log_p = torch.log_softmax(z.to(torch.promote_types(z.dtype, torch.float32)), -1)
    loss, counted = _loss(log_p, target, weights)
    hit = torch.arange(z.shape[1], device=z.device) == target[:, None]
    return loss, ((log_p.exp() - hit.to(log_p.dtype)) * counted[:, None]).to(z.dtype)


def _gradient_of_logits(device: torch.device, wanted: bool) -> Softmax:
    if not wanted:
        return _loss_only
    return _fused_softmax if device.type == "cuda" else _softmax
