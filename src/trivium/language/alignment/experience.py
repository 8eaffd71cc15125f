"""What PPO and GRPO make of the answers of a round: rewards, divergences, values, advantages.

Log-probabilities of the answers are not taken from the engine: the forward pass of training makes
them, on the very minibatches that will be learnt from first. So the ratio π / π_old of the first of
them is 1, in whatever order the engine summed.

R answers, T tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trivium.data import IGNORE
from trivium.language.alignment.advantages import (
    KLController,
    advantages,
    group_advantages,
    token_rewards,
    whitened,
)
from trivium.language.alignment.logprobs import said
from trivium.language.alignment.places import places
from trivium.language.alignment.policy import ActorCritic, k3
from trivium.language.alignment.reference import Reference
from trivium.language.alignment.rollouts import (
    Answer,
    Prompt,
    Round,
    Statistics,
    as_rows,
    minibatch,
)
from trivium.language.alignment.verifiable import CHECKS

Reward = Callable[[Sequence[Prompt], Sequence[Answer]], Sequence[float]]


def verified(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[float]:
    """1 for an answer that is right and came to an end, else 0."""
    return [
        float(answer.ended and CHECKS[prompt.check](answer.text, prompt.answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


class _OfPolicy:
    """What both share."""

    def __init__(
        self,
        policy: nn.Module,
        reference: Reference,
        reward: Reward,
        *,
        filler: int,
        temperature: float = 1.0,
    ) -> None:
        self._policy, self._reference, self._reward = policy, reference, reward
        self._filler, self._temperature = filler, temperature
        self._device = next(policy.parameters()).device

    def _judged(self, round: Round) -> tuple[dict[str, Tensor], Tensor, Statistics]:
        """The rows, the score of each answer, and what there is to say."""
        scores = [float(score) for score in self._reward(round.prompts, round.answers)]
        count = len(scores)
        statistics = {
            "reward": sum(scores) / count,
            "answer_tokens": sum(len(answer.ids) for answer in round.answers) / count,
            "ended": sum(answer.ended for answer in round.answers) / count,
        }
        return as_rows(round, self._filler), torch.tensor(scores), statistics

    def _each(
        self,
        round: Round,
        tensors: Mapping[str, Tensor],
        read: Callable[[dict[str, Tensor]], list[Tensor]],
    ) -> list[Tensor]:
        """What `read` gives (R, T), from minibatches as they will be learnt from."""
        shape = tensors["ids"].shape
        found: list[Tensor] = []
        with torch.no_grad():
            for rows in round.minibatches:
                here = minibatch(tensors, rows)
                values = read({name: value.to(self._device) for name, value in here.items()})
                found = found or [torch.zeros(shape) for _ in values]
                for whole, value in zip(found, values, strict=True):
                    whole[rows, : value.shape[1]] = value.float().cpu()
        return found

    def _logprobs(self, model: nn.Module, batch: dict[str, Tensor], **more: Any) -> Tensor:
        """(R, T), 0 where there is no target."""
        found = said(model, batch, temperature=self._temperature, **more)
        real = batch["targets"] != IGNORE
        return found.logprobs.new_zeros(real.shape).masked_scatter(real, found.logprobs)


class PPOExperience(_OfPolicy):
    """Rewards with a penalty on the divergence at every token, and GAE."""

    def __init__(
        self,
        model: ActorCritic,
        reference: Reference,
        reward: Reward,
        controller: KLController,
        *,
        gamma: float = 1.0,
        lam: float = 0.95,
        **more: Any,
    ) -> None:
        super().__init__(model.policy, reference, reward, **more)
        self._model, self._controller = model, controller
        self._gamma, self._lam = gamma, lam

    def __call__(self, round: Round) -> tuple[dict[str, Tensor], Statistics]:
        tensors, scores, statistics = self._judged(round)
        logprobs, values, before = self._each(round, tensors, self._read)
        real = tensors["targets"] != IGNORE
        log_ratio = (logprobs - before) * real
        rewards = token_rewards(log_ratio, scores, real, self._controller.beta)
        gains, returns = advantages(rewards, values, real, gamma=self._gamma, lam=self._lam)
        kl = float(log_ratio.sum(1).mean())
        statistics |= {"kl": kl, "kl_weight": self._controller.beta}
        self._controller.update(kl, len(scores))
        made = {"logprobs": logprobs, "values": values * real, "returns": returns}
        return tensors | made | {"advantages": whitened(gains, real)}, statistics

    def _read(self, batch: dict[str, Tensor]) -> list[Tensor]:
        at = places(self._model.policy, batch)
        logprobs = self._logprobs(self._model.policy, batch, at=at)
        values = torch.zeros_like(logprobs)
        values[at.rows, at.columns] = self._model.values(batch, at)
        with self._reference as frozen:
            before = self._logprobs(frozen, batch)
        return [logprobs, values, before]

    def state(self) -> dict[str, Any]:
        return {"beta": self._controller.beta}

    def load(self, state: Mapping[str, Any]) -> None:
        self._controller.beta = state["beta"]


class GRPOExperience(_OfPolicy):
    """Advantages within the group of answers to a prompt; the divergence is in the loss.

    scaled: see `group_advantages`
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: Reference,
        reward: Reward,
        *,
        scaled: bool = True,
        **more: Any,
    ) -> None:
        super().__init__(policy, reference, reward, **more)
        self._scaled = scaled

    def __call__(self, round: Round) -> tuple[dict[str, Tensor], Statistics]:
        tensors, scores, statistics = self._judged(round)
        logprobs, before = self._each(round, tensors, self._read)
        real = tensors["targets"] != IGNORE
        gains = group_advantages(scores, round.of_each, scaled=self._scaled)
        groups = scores.view(-1, round.of_each)
        divergence = (k3(logprobs, before) * real).sum(1).mean()
        statistics |= {
            "kl": float(divergence),
            "undecided": float((groups.amax(1) != groups.amin(1)).float().mean()),
        }
        return tensors | {
            "logprobs": logprobs,
            "reference": before,
            "advantages": gains,
        }, statistics

    def _read(self, batch: dict[str, Tensor]) -> list[Tensor]:
        logprobs = self._logprobs(self._policy, batch)
        with self._reference as frozen:
            return [logprobs, self._logprobs(frozen, batch)]

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing: it holds no state."""
