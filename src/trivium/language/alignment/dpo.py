"""Direct preference optimisation: a policy learns from ranked replies without a reward model
(Rafailov et al. 2023), since it is one:

    r(x, y) = β (log π(y|x) − log π_ref(y|x))        loss = −log σ(r_better − r_worse)

R rows (replies), P pairs.
"""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn

from trivium.language.alignment.logprobs import said
from trivium.language.alignment.preferences import (
    bradley_terry,
    identity_preference,
    implicit_rewards,
    pairs,
)
from trivium.language.alignment.reference import Reference
from trivium.train import Loss


def dpo_loss(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    reference: Reference,
    beta: float = 0.1,
    smoothing: float = 0.0,
) -> Loss:
    """DPO's loss of ranked replies, summed over the prompts.

    batch: ids, targets (R, T), groups, ranks (R,), as `PreferenceBatches` makes them
    smoothing: the share of pairs that are taken to be the wrong way round (Mitchell 2023)
    """
    of_margins = partial(bradley_terry, smoothing=smoothing)
    return _of_pairs(model, batch, reference, beta, of_margins)


def ipo_loss(
    model: nn.Module, batch: Mapping[str, Tensor], *, reference: Reference, beta: float = 0.1
) -> Loss:
    """IPO's (Azar et al. 2023), which does not push a pair apart without end. Log-ratios are
    averaged over a reply's tokens, as in the paper's experiments (its authors told TRL's)."""
    of_margins = partial(identity_preference, beta=beta)
    return _of_pairs(model, batch, reference, beta, of_margins, mean=True)


def rewards_of(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    reference: Reference,
    beta: float,
    *,
    mean: bool = False,
) -> Tensor:
    """r (R,) of each reply, up to what is the same for all replies to its prompt.

    mean: of a token, on average over the reply's
    """
    count = len(batch["ids"])
    with reference as frozen:
        before = said(frozen, batch)
    now = said(model, batch)
    rewards = implicit_rewards(now.of_rows(count), before.of_rows(count), beta)
    return rewards / now.counts(count) if mean else rewards


def _of_pairs(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    reference: Reference,
    beta: float,
    loss: Callable[[Tensor], Tensor],
    mean: bool = False,
) -> Loss:
    rewards = rewards_of(model, batch, reference, beta, mean=mean)
    found = pairs(batch["groups"], batch["ranks"])
    better, worse = rewards[found.better], rewards[found.worse]
    with_weight = {
        "accuracy": better > worse,
        "margin": better - worse,
        "chosen_reward": better,
        "rejected_reward": worse,
    }
    metrics = {name: (found.weight * x.detach()).sum() for name, x in with_weight.items()}
    return Loss((found.weight * loss(better - worse)).sum(), found.weight.sum(), metrics)
