"""The reward model: a number for a conversation, from people's rankings (Christiano et al. 2017;
Stiennon et al. 2020; Ouyang et al. 2022).

    r(x, y) = w · h_T     h_T what the Transformer makes of the last token of prompt x, reply y

Only differences between replies to one prompt are learnt; a constant is free.

R rows, T tokens, C width, P pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trivium.language.alignment.places import last_features
from trivium.language.alignment.preferences import bradley_terry, pairs, plackett_luce
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.train import Loss


@dataclass(frozen=True)
class RewardConfig(TransformerConfig):
    """That of the Transformer. `centre` is subtracted from every reward: set after training, so
    that they are around 0."""

    centre: float = 0.0


class RewardModel(nn.Module):
    """`body` is a causal Transformer, whose own head is not used."""

    def __init__(self, config: RewardConfig, body: Transformer | None = None) -> None:
        super().__init__()
        self.config, self.centre = config, config.centre
        self.body = Transformer(config) if body is None else body
        self.head = nn.Linear(config.width, 1, bias=False)
        if not self.head.weight.is_meta:
            nn.init.normal_(self.head.weight, std=(config.width + 1) ** -0.5)

    @classmethod
    def of(cls, body: Transformer) -> "RewardModel":
        """With a new head on a model that is there."""
        return cls(RewardConfig(**vars(body.config)), body)

    def scores(self, ids: Tensor) -> Tensor:
        """ids (R, T) → (R, T): what each token would say as the last one."""
        features = self.body.features(ids)
        return self.head(features).squeeze(-1).float() - self.centre

    def forward(self, ids: Tensor, ends: Tensor) -> Tensor:
        """ids (R, T), padded on the right, whose last tokens are at `ends` (R,) → rewards (R,)"""
        last = last_features(self.body, ids, ends)  # (R, C)
        return self.head(last).squeeze(-1).float() - self.centre


Ranking = Literal["pairs", "list"]


def reward_loss(
    model: RewardModel, batch: Mapping[str, Tensor], *, ranking: Ranking = "pairs"
) -> Loss:
    """The loss of ranked replies, summed over the prompts.

    batch: ids (R, T), ends, groups, ranks (R,), as `PreferenceBatches` makes them
    ranking: "pairs" for all pairs of replies (Bradley–Terry), "list" for Plackett–Luce
    """
    rewards = model(batch["ids"], batch["ends"])
    found = pairs(batch["groups"], batch["ranks"])
    margins = rewards[found.better] - rewards[found.worse]
    if ranking == "pairs":
        total = (found.weight * bradley_terry(margins)).sum()
    else:
        total = plackett_luce(rewards, batch["groups"], batch["ranks"]).sum()
    right = found.weight * (margins > 0)
    metrics = {"accuracy": right.sum(), "margin": (found.weight * margins).sum().detach()}
    return Loss(total, found.weight.sum(), metrics)


@torch.no_grad()
def margins_of(model: RewardModel, batch: Mapping[str, Tensor]) -> Tensor:
    """r_better − r_worse (P,) of all pairs of a batch."""
    rewards = model(batch["ids"], batch["ends"])
    found = pairs(batch["groups"], batch["ranks"])
    return rewards[found.better] - rewards[found.worse]


@dataclass(frozen=True)
class Calibration:
    """Whether σ(margin) is how often a pair is ordered so.

    bins    (mean predicted probability, share that was right, how many), each seen from the reply
            that the model prefers
    error   Σ (count / all) · |predicted − right|, the expected calibration error (Guo et al. 2017)
    """

    bins: tuple[tuple[float, float, int], ...]
    error: float


def calibration(margins: Tensor, bins: int = 10) -> Calibration:
    """Of margins (P,) on held-out pairs, in bins of equal width between 1/2 and 1."""
    predicted = torch.sigmoid(margins.double().abs())
    right = (margins > 0).double() + 0.5 * (margins == 0)
    place = ((predicted - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    found, error = [], 0.0
    for number in range(bins):
        inside = place == number
        if count := int(inside.sum()):
            said, was = float(predicted[inside].mean()), float(right[inside].mean())
            found.append((said, was, count))
            error += count / len(margins) * abs(said - was)
    return Calibration(tuple(found), error)
