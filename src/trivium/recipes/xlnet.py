"""Train an XLNet (Yang et al. 2019) on text: predict tokens in any order."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trivium.language.permutation import PermutedBatches, permuted_token
from trivium.language.xlnet import XLNet, XLNetConfig
from trivium.recipes.config import shared
from trivium.recipes.in_context import guessed, judge_vectors, show_filled_in
from trivium.recipes.language_model import Held, Text
from trivium.recipes.run import Run
from trivium.recipes.text_run import Measures, Objective, TextConfig, run_text


@dataclass(frozen=True)
class Config(TextConfig):
    width: int = 128  # of the streams
    layers: int = 2  # blocks
    heads: int = 4  # of attention
    rounds: float = 24.0  # of the data, if `steps` are not given; each predicts a sixth
    learning_rate: float = 2e-3  # at its peak


def prepare(batches: Any, text: Text, seed: int) -> PermutedBatches:
    return PermutedBatches(batches, seed=seed)


def measures(model: Any, held: Held, text: Text) -> Measures:
    """How well it predicts the tokens of a drawn order, and how well it reads on."""

    def asked(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        features = model.predict(
            batch["ids"], batch["order"], batch["places"], segments=batch["segments"]
        )
        return features.flatten(0, 1), batch["targets"].flatten()

    drawn = PermutedBatches([], seed=0)
    hidden = (drawn.permuted(batch, number) for number, batch in enumerate(held.batches))
    loss, accuracy = guessed(model, hidden, asked)
    return {
        "permuted_loss": loss,
        "permuted_accuracy": accuracy,
        "bits_per_byte": held.bits_per_byte(model),
    }


def uses(run: Run, model: Any, text: Text) -> Measures:
    def guess(ids: Tensor, place: int) -> Tensor:
        order = torch.zeros_like(ids)
        order[0, place] = 1
        features = model.predict(ids, order, torch.tensor([[place]], device=ids.device))
        logits: Tensor = model.logits(features)[0, 0]
        return logits

    show_filled_in(run, model, text, guess)
    return judge_vectors(model, text, model.encode)


def main(config: Config) -> dict[str, Any]:
    def architecture(vocab_size: int) -> XLNetConfig:
        return shared(XLNetConfig, config, vocab_size=vocab_size, hidden=4 * config.width)

    objective = Objective(loss=permuted_token, prepare=prepare, measures=measures)
    return run_text(config, "xlnet", architecture, XLNet, objective, attends=True, behind=uses)
