"""Train ELMo (Peters et al. 2018) on text: one LSTM reads forwards and one backwards."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trivium.language.elmo import Elmo, ElmoConfig, both_directions
from trivium.recipes.config import shared
from trivium.recipes.in_context import judge_vectors
from trivium.recipes.language_model import Held, Text
from trivium.recipes.run import Run
from trivium.recipes.text_run import Measures, Objective, TextConfig, run_text


@dataclass(frozen=True)
class Config(TextConfig):
    width: int = 256  # of the state of each direction
    layers: int = 2  # of each direction


def measures(model: Any, held: Held, text: Text) -> Measures:
    """The mean of both directions, and each. (What a direction has to predict is the same.)"""
    both, ahead = held.bits_per_byte(model, both_directions), held.bits_per_byte(model)
    return {
        "bits_per_byte_of_both": both / 2,
        "bits_per_byte": ahead,
        "bits_per_byte_backwards": both - ahead,
    }


def vectors(run: Run, model: Any, text: Text) -> Measures:
    def encode(ids: Tensor) -> Tensor:
        return torch.stack(model.vectors(ids)).mean(0)  # a `Mix` that has learnt nothing yet

    return judge_vectors(model, text, encode)


def main(config: Config) -> dict[str, Any]:
    def architecture(vocab_size: int) -> ElmoConfig:
        return shared(ElmoConfig, config, vocab_size=vocab_size)

    objective = Objective(loss=both_directions, measures=measures)
    return run_text(config, "elmo", architecture, Elmo, objective, behind=vectors)
