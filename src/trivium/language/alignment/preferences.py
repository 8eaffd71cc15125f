"""Losses on ranked replies.

    Bradley–Terry (1952)      P(a ≻ b) = σ(r_a − r_b)
    Plackett–Luce (1975)      P(1 ≻ 2 ≻ … ≻ K) = Π_k exp r_k / Σ_{j ≥ k} exp r_j
    DPO (Rafailov et al. 2023, eq. 7)   the first, with r = β (log π(y|x) − log π_ref(y|x))
    IPO (Azar et al. 2023, eq. 17)      (h − 1/2β)²,  h = the difference of the log-ratios

A batch holds R replies to some prompts: `groups` (R,) says which prompt a reply is to, `ranks` (R,)
its place there, 0 for the best; equal ranks are ties. Of K ranked replies all pairs are compared,
as Ouyang et al. 2022 (eq. 1) do, and every prompt counts as one.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Pairs(NamedTuple):
    """better, worse (P,): rows of a batch; weight (P,): 1 / (pairs of this prompt)."""

    better: Tensor
    worse: Tensor
    weight: Tensor


def pairs(groups: Tensor, ranks: Tensor) -> Pairs:
    """All pairs of replies to the same prompt of which one is better. Padding has group −1."""
    same = (groups[:, None] == groups) & (groups >= 0)
    better, worse = (same & (ranks[:, None] < ranks)).nonzero(as_tuple=True)
    group = groups[better]
    counts = torch.bincount(group, minlength=1)
    return Pairs(better, worse, 1.0 / counts[group])


def bradley_terry(margins: Tensor, smoothing: float = 0.0) -> Tensor:
    """−log σ(m) of the margins r_better − r_worse.

    smoothing: the share of pairs that are taken to be the wrong way round (Mitchell 2023)
    """
    right, wrong = F.logsigmoid(margins), F.logsigmoid(-margins)
    return -(1 - smoothing) * right - smoothing * wrong


def identity_preference(margins: Tensor, beta: float) -> Tensor:
    """IPO, of margins that are differences of log-ratios times β."""
    return (margins / beta - 1 / (2 * beta)) ** 2


def plackett_luce(scores: Tensor, groups: Tensor, ranks: Tensor) -> Tensor:
    """−log P of the ranking of each reply's prompt, in shares (R,): what is drawn in its place.

    Those that share the last place are drawn in no order. Other ties count as drawn from all of
    them at once (Breslow 1974).
    """
    same = (groups[:, None] == groups) & (groups >= 0)[:, None]
    left = same & (ranks[:, None] <= ranks)  # what was still there when the row's reply was drawn
    draws = (same & (ranks[:, None] < ranks)).any(1)  # nothing is drawn at the last place
    among = scores.masked_fill(~left, -torch.inf)
    among = torch.where(draws[:, None], among, 0.0)  # no row of −∞ alone, whose gradient is NaN
    return torch.where(draws, torch.logsumexp(among, 1) - scores, 0.0)


def implicit_rewards(logprobs: Tensor, reference: Tensor, beta: float) -> Tensor:
    """r = β (log π − log π_ref) of each reply, but for a constant of its prompt (DPO, eq. 5)."""
    return beta * (logprobs - reference)
