"""Log-probabilities of given tokens, and entropies, without the logits of a whole batch.

    log p_n = z_n,target(n) − log Σ_v exp z_nv,     z = features · Wᵀ / τ + b
    H_n     = −Σ_v p_nv log p_nv

As in `trivium.language.losses`, logits exist for a chunk of rows at a time. There every row's
gradient is known at once; here it is the caller's, row by row, and comes later. If only the
features get a gradient, as with LoRA, their slopes

    ∂log p_n/∂x_n = W_target(n) − Σ_v p_nv W_v          ∂H_n/∂x_n = −Σ_v p_nv (log p_nv + H_n) W_v

are made along with the values, so that the backward pass is a product of two numbers each. If W
gets one too, the backward pass makes the logits of each chunk again.

N tokens, C width, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trivium.language.alignment.places import Places, places
from trivium.language.losses import Headed, chunk_rows


class Said(NamedTuple):
    """What a model says of the tokens of some rows that carry targets.

    rows      (N,) the row of the batch that each is in, ascending
    logprobs  (N,) in float32
    entropy   (N,) of the distribution that it is from; None unless asked for
    """

    rows: Tensor
    logprobs: Tensor
    entropy: Tensor | None

    def of_rows(self, count: int) -> Tensor:
        """log p of each reply: the sums (R,) over the tokens of its row."""
        return self.logprobs.new_zeros(count).index_add(0, self.rows, self.logprobs)

    def counts(self, count: int) -> Tensor:
        """How many tokens each reply has (R,), at least 1."""
        return torch.bincount(self.rows, minlength=count).clamp(min=1)


def said(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    at: Places | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
) -> Said:
    """log p of each token of `batch` that is a target: ids and targets (R, T), IGNORE elsewhere.

    at: where they are, if it is known already
    temperature: of the distribution; that which the tokens were drawn with
    """
    headed = cast(Headed, model)
    x, rows, columns = places(model, batch) if at is None else at
    if (transform := getattr(model, "transform", None)) is not None:
        x = transform(x)
    head = headed.embedding if headed.head is None else headed.head
    values = token_logprobs(
        x,
        head.weight,
        batch["targets"][rows, columns],
        bias=getattr(head, "bias", None),
        temperature=temperature,
        entropy=entropy,
    )
    return Said(rows, *values)


def token_logprobs(
    features: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """log p (N,) of targets (N,), and, if asked for, entropies (N,); in float32 at least.

    features (N, C), weight (V, C), bias (V,); `chunk` rows of logits exist at a time. Under
    autocast the products are made in its precision.
    """
    if temperature != 1:
        features = features / temperature
        bias = None if bias is None else bias / temperature
    if chunk is None:
        chunk = chunk_rows(features.device, len(weight))
    grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (features, weight, bias)
    )
    function: Any = ChunkedLogprobs
    logprobs, entropies = function.apply(features, weight, bias, targets, chunk, entropy, grad)
    return logprobs, entropies if entropy else None


class ChunkedLogprobs(torch.autograd.Function):
    """See `token_logprobs`."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk: int,
        entropy: bool,
        grad: bool,
    ) -> tuple[Tensor, Tensor]:
        device = features.device.type
        dtype = torch.promote_types(features.dtype, weight.dtype)
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        wanted = [grad and need for need in ctx.needs_input_grad[:3]]
        ctx.again = wanted[1] or wanted[2]
        ctx.chunk, ctx.dtype, ctx.wanted, ctx.entropy = chunk, dtype, wanted, entropy
        exact = torch.promote_types(dtype, torch.float32)
        logprobs = torch.empty(len(features), dtype=exact, device=features.device)
        entropies = torch.empty_like(logprobs) if entropy else logprobs.new_empty(0)
        slopes = wanted[0] and not ctx.again
        d_logprobs = torch.empty_like(features) if slopes else None
        d_entropies = torch.empty_like(features) if slopes and entropy else None
        with torch.autocast(device, enabled=False):
            head = weight.to(dtype)
            for first in range(0, len(features), chunk):
                at = slice(first, first + chunk)
                z = _log_softmax(features[at].to(dtype), head, bias, exact)
                hit = targets[at, None]
                logprobs[at] = z.gather(1, hit).squeeze(1)
                p = z.exp() if entropy or slopes else None
                if entropy and p is not None:
                    entropies[at] = -(p * z).sum(1)
                if d_logprobs is not None and p is not None:
                    d_logprobs[at] = head[targets[at]] - p.to(dtype) @ head
                if d_entropies is not None and p is not None:
                    slope = p.mul_(z.add_(entropies[at, None])).to(dtype)
                    d_entropies[at] = (slope @ head).neg_()
        if grad and ctx.again:
            ctx.save_for_backward(features, weight, bias, targets, entropies)
        elif grad:
            ctx.save_for_backward(d_logprobs, d_entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.again:
            with torch.autocast(outer[0].device.type, enabled=False):
                return *_sweep_back(ctx, *outer), None, None, None, None
        d_logprobs, d_entropies = ctx.saved_tensors
        grad = outer[0][:, None].to(d_logprobs.dtype) * d_logprobs
        if d_entropies is not None:
            grad.addcmul_(outer[1][:, None].to(grad.dtype), d_entropies)
        return grad, None, None, None, None, None, None


def _log_softmax(x: Tensor, head: Tensor, bias: Tensor | None, exact: torch.dtype) -> Tensor:
    z = x @ head.t()  # (R, V)
    if bias is not None:
        z += bias.to(z.dtype)
    wide = z.to(exact)
    return torch.log_softmax(wide, -1, out=wide)


def _sweep_back(ctx: Any, d_logprobs: Tensor, d_entropies: Tensor) -> list[Tensor | None]:
    """The gradients of features, weight and bias, from logits that are made again."""
    features, weight, bias, targets, entropies = ctx.saved_tensors
    dtype, exact = ctx.dtype, torch.promote_types(ctx.dtype, torch.float32)
    head = weight.to(dtype)
    d_features = torch.empty_like(features) if ctx.wanted[0] else None
    d_weight = torch.zeros_like(weight, dtype=exact) if ctx.wanted[1] else None
    d_bias = torch.zeros_like(bias, dtype=exact) if ctx.wanted[2] else None
    for first in range(0, len(features), ctx.chunk):
        at = slice(first, first + ctx.chunk)
        x, hit = features[at].to(dtype), targets[at, None]
        z = _log_softmax(x, head, bias, exact)
        outer = d_logprobs[at, None].to(exact)
        if ctx.entropy:  # dz = −g_p p − g_H p (log p + H), and g_p at the target
            factor = outer + d_entropies[at, None] * (z + entropies[at, None])
            dz = z.exp_().mul_(factor).neg_()
        else:
            dz = z.exp_().mul_(-outer)
        dz.scatter_add_(1, hit, outer)
        small = dz.to(dtype)
        if d_features is not None:
            d_features[at] = small @ head
        if d_weight is not None:
            if dtype == exact:
                d_weight.addmm_(small.t(), x)
            else:
                d_weight += small.t() @ x
        if d_bias is not None:
            d_bias += dz.sum(0)
    return [
        d_features,
        None if d_weight is None else d_weight.to(weight.dtype),
        None if d_bias is None else d_bias.to(bias.dtype),
    ]
