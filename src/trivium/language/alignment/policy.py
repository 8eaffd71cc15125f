"""The losses of policies that learn from rewards.

    PPO (Schulman et al. 2017, eq. 7)    −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A),   ρ = π / π_old
    value (Ziegler et al. 2019's code)   ½ max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²)
    GRPO (Shao et al. 2024, eq. 3)       PPO's, + β · KL, averaged over each answer's tokens
    k₃ (Schulman 2020)                   KL(π ‖ π_ref) ≈ π_ref/π − log(π_ref/π) − 1, which is ≥ 0

All are of the N tokens of some answers, and not yet averaged.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trivium.data import IGNORE
from trivium.language.alignment.logprobs import said
from trivium.language.alignment.places import Places, places
from trivium.language.transformer import Transformer
from trivium.nn.lora import lora_layers
from trivium.train import Loss


def clipped(logprobs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """PPO's loss of each token (N,)."""
    ratio = (logprobs - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clipped_value(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """The value's loss of each token (N,)."""
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """An estimate (N,) of KL(π ‖ π_ref) from tokens of π: unbiased, and never below 0."""
    log_ratio = reference - logprobs
    return log_ratio.exp() - log_ratio - 1


class ActorCritic(nn.Module):
    """The policy, and the value of every place in its answers: what PPO trains.

    critic: the value model, a Transformer whose features a linear head reads (see `critic_of`);
        None: the head reads those of the policy
    """

    def __init__(self, policy: Transformer, critic: Transformer | None = None) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic
        self.value = nn.Linear(policy.config.width, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def values(self, batch: Mapping[str, Tensor], at: Places) -> Tensor:
        """(N,) at the places of answers; `at` are the policy's features there."""
        features = at.features if self.critic is None else places(self.critic, batch).features
        return self.value(features).squeeze(-1).float()


def critic_of(policy: Transformer) -> Transformer:
    """A model that begins as the policy and is trained apart from it. What is frozen is shared:
    with LoRA, only the changes are its own."""
    frozen: dict[int, Any] = {
        id(tensor): tensor for tensor in policy.parameters() if not tensor.requires_grad
    }
    frozen |= {id(layer.base): layer.base for _, layer in lora_layers(policy)}
    return copy.deepcopy(policy, frozen)


def ppo_loss(
    model: ActorCritic,
    batch: Mapping[str, Tensor],
    *,
    clip: float = 0.2,
    value_clip: float = 0.2,
    value_weight: float = 0.1,
    entropy_weight: float = 0.0,
    temperature: float = 1.0,
) -> Loss:
    """The sum over the tokens of answers.

    batch: ids and targets (R, T); logprobs, values (R, T) as they were when the answers were made;
    advantages and returns (R, T)
    """
    at, entropy = places(model.policy, batch), entropy_weight != 0
    now = said(model.policy, batch, at=at, temperature=temperature, entropy=entropy)
    real = batch["targets"] != IGNORE
    old, advantage = batch["logprobs"][real], batch["advantages"][real]
    policy = clipped(now.logprobs, old, advantage, clip).sum()
    value = clipped_value(
        model.values(batch, at), batch["values"][real], batch["returns"][real], value_clip
    ).sum()
    total = policy + value_weight * value
    metrics = _drift(now.logprobs, old, clip)
    metrics |= {"policy_loss": policy.detach(), "value_loss": value.detach()}
    if now.entropy is not None:
        total = total - entropy_weight * now.entropy.sum()
        metrics["entropy"] = now.entropy.sum().detach()
    return Loss(total, real.sum(), metrics)


def grpo_loss(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    clip: float = 0.2,
    beta: float = 0.04,
    temperature: float = 1.0,
) -> Loss:
    """The sum over answers of the mean over each one's tokens.

    batch: ids and targets (R, T), logprobs (R, T) as they were when the answers were made,
    reference (R, T) of the reference model (not looked at if beta is 0), advantages (R,)
    """
    real = batch["targets"] != IGNORE
    now = said(model, batch, temperature=temperature)
    old = batch["logprobs"][real]
    share = 1.0 / real.sum(1).clamp(min=1)[now.rows]  # of a token in its answer
    loss = clipped(now.logprobs, old, batch["advantages"][now.rows], clip)
    metrics = _drift(now.logprobs, old, clip, share)
    if beta:
        divergence = k3(now.logprobs, batch["reference"][real])
        loss = loss + beta * divergence
        metrics["kl"] = (divergence * share).sum().detach()
    return Loss((loss * share).sum(), real.any(1).sum(), metrics)


def _drift(
    logprobs: Tensor, old: Tensor, clip: float, share: Tensor | float = 1.0
) -> dict[str, Tensor]:
    """How far the policy is from the one that made the answers: the share of tokens whose ratio is
    beyond the clip, and k₃ of the two."""
    log_ratio = (logprobs - old).detach()
    ratio = log_ratio.exp()
    beyond = ((ratio - 1).abs() > clip).to(ratio.dtype)
    return {"clipped": (share * beyond).sum(), "drift": (share * (ratio - 1 - log_ratio)).sum()}
