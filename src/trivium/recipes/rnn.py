"""Train a recurrent network (Elman 1990) on text: h_t = tanh(U x_t + V h_{t−1} + b)."""

from dataclasses import dataclass
from typing import Any

from trivium.language.recurrent import Recurrent, RecurrentConfig
from trivium.recipes.config import shared
from trivium.recipes.text_run import TextConfig, run_text


@dataclass(frozen=True)
class Config(TextConfig):
    width: int = 256  # of the state
    layers: int = 2  # one reads the states of the one below
    learning_rate: float = 3e-3  # at its peak


def main(config: Config) -> dict[str, Any]:
    def architecture(vocab_size: int) -> RecurrentConfig:
        return shared(RecurrentConfig, config, vocab_size=vocab_size, cell="rnn")

    return run_text(config, "recurrent", architecture, Recurrent)
