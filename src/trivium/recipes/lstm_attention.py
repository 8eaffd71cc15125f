"""Train an LSTM that looks back at its states (Luong et al. 2015) on text."""

from dataclasses import dataclass
from typing import Any

from trivium.language.recurrent import Recurrent, RecurrentConfig
from trivium.recipes.config import shared
from trivium.recipes.text_run import TextConfig, run_text


@dataclass(frozen=True)
class Config(TextConfig):
    width: int = 256  # of the state
    layers: int = 2  # one reads the states of the one below


def main(config: Config) -> dict[str, Any]:
    def architecture(vocab_size: int) -> RecurrentConfig:
        settings = {"vocab_size": vocab_size, "cell": "lstm", "top": "attention"}
        return shared(RecurrentConfig, config, **settings)

    return run_text(config, "recurrent", architecture, Recurrent)
