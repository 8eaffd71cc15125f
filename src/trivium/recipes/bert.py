"""Train a BERT (Devlin et al. 2018) on text: guess hidden words, from both sides."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from trivium.data import IGNORE
from trivium.language import bpe
from trivium.language.losses import masked_token
from trivium.language.masking import MaskedBatches, mask_id
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.recipes.config import shared
from trivium.recipes.in_context import guessed, judge_vectors, show_filled_in
from trivium.recipes.language_model import Held, Text
from trivium.recipes.run import Run
from trivium.recipes.text_run import Measures, Objective, TextConfig, run_text

MASK = "<|mask|>"


@dataclass(frozen=True)
class Config(TextConfig):
    context: int = 64  # tokens of a window: short ones teach first what stands side by side
    width: int = 128  # of the stream
    layers: int = 2  # blocks
    heads: int = 4  # of attention
    rounds: float = 40.0  # of the data, if `steps` are not given; each guesses 15 %
    batch: int = 1024  # tokens of a step
    learning_rate: float = 2e-3  # at its peak
    optimizer: Literal["adamw", "muon"] = "muon"  # of matrices inside the blocks


def prepare(batches: Any, text: Text, seed: int) -> MaskedBatches:
    return MaskedBatches(batches, text.tokenizer, seed=seed)


def measures(model: Any, held: Held, text: Text) -> Measures:
    """How well it guesses what is hidden."""

    def asked(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        chosen = batch["targets"] != IGNORE
        features = model.features(batch["ids"], segments=batch["segments"])
        return features[chosen], batch["targets"][chosen]

    drawn = MaskedBatches([], text.tokenizer, seed=0)
    hidden = (drawn.hidden(batch, number) for number, batch in enumerate(held.batches))
    loss, accuracy = guessed(model, hidden, asked)
    return {"masked_loss": loss, "masked_accuracy": accuracy}


def uses(run: Run, model: Any, text: Text) -> Measures:
    mask = mask_id(text.tokenizer)

    def guess(ids: Tensor, place: int) -> Tensor:
        hidden = ids.clone()
        hidden[0, place] = mask
        logits: Tensor = model.logits(model.features(hidden)[0, place])
        return logits

    show_filled_in(run, model, text, guess)
    return judge_vectors(model, text, model.features)


def main(config: Config) -> dict[str, Any]:
    def architecture(vocab_size: int) -> TransformerConfig:
        return shared(
            TransformerConfig,
            config,
            vocab_size=vocab_size,
            hidden=4 * config.width,
            norm="layer",
            norm_eps=1e-12,
            block="post",
            stem="bert",
            token_types=1,
            mlp="gelu",
            position="learned",
            causal=False,
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            transform="bert",
        )

    objective = Objective(
        loss=masked_token,
        prepare=prepare,
        measures=measures,
        reads_on=False,
        special=(*bpe.SPECIAL, MASK),
    )
    return run_text(
        config,
        "transformer",
        architecture,
        Transformer,
        objective,
        attends=True,
        behind=uses,
        limits="It fills in words of text like that which it learnt from, and does not write.",
    )
