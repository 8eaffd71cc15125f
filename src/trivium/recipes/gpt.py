"""Pre-train a causal Transformer from raw text; one dial, the depth, sets everything.

GPT (Radford et al. 2018): maximise Σ log P(x_i | x_{i−k} … x_{i−1}; θ) over windows of k tokens.
The blocks are those of today's models: RMSNorm, rotary positions, SwiGLU, no biases.

    width    64 · depth, in heads of 64
    tokens   20 for each parameter (Hoffmann et al. 2022), but at most 4 rounds of the data,
             beyond which repeating it teaches little (Muennighoff et al. 2023)
    step     4·√tokens tokens, as a power of 2, since the batch that pays grows with the data
             (Zhang et al. 2024)
    rate     5e-3 / √(depth / 4) for muon, 3e-3 / √(depth / 4) for adamw
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from trivium.language.transformer import Transformer, TransformerConfig
from trivium.recipes.config import shared
from trivium.recipes.hardware import fast_precision
from trivium.recipes.language_model import Text, micro_batch
from trivium.recipes.text_run import TextConfig, evaluated_every, run_text
from trivium.train import TrainConfig, world_size

TOKENS_PER_PARAMETER = 20
RATES = {"muon": 5e-3, "adamw": 3e-3}


@dataclass(frozen=True)
class Config(TextConfig):
    depth: int = 4  # blocks; all other sizes follow
    vocab_size: int = 4096  # of the tokenizer that is made from the data
    rounds: float = 4.0  # of the data at most, if `steps` are not given
    batch: int = 0  # tokens of a step; 0: by the rule of the recipe
    rows: int = 0  # of a micro-batch; 0: as many as are fast on the device
    learning_rate: float = 0.0  # at its peak; 0: by the rule of the recipe
    optimizer: Literal["muon", "adamw"] = "muon"  # of the matrices of blocks; the rest: adamw
    checkpointing: bool = False  # less memory, a third more time
    compile: bool = False  # pays on a GPU
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"  # with torchrun


def model_config(depth: int, context: int, vocab_size: int) -> TransformerConfig:
    width = 64 * depth
    return TransformerConfig(
        vocab_size=vocab_size,
        context=context,
        width=width,
        layers=depth,
        heads=depth,
        hidden=round(width * 8 / 3 / 64) * 64,
    )


def plan_of(
    config: Config, text: Text, parameters: int, device: Any
) -> tuple[TrainConfig, int, int]:
    """How to train, the rows of a micro-batch, and the tokens of a step."""
    tokens = min(TOKENS_PER_PARAMETER * parameters, int(config.rounds * text.tokens))
    batch = config.batch or 2 ** round(math.log2(4 * math.sqrt(config.steps * 4096 or tokens)))
    rows, accumulate = micro_batch(batch, config.context, device, config.rows)
    size = rows * accumulate * world_size() * config.context
    steps = config.steps or max(10, tokens // size)
    plan = shared(
        TrainConfig,
        config,
        steps=steps,
        accumulate=accumulate,
        learning_rate=config.learning_rate or RATES[config.optimizer] / math.sqrt(config.depth / 4),
        precision=fast_precision(device) if config.precision == "auto" else config.precision,
        warmup=max(1, steps // 50),
        schedule="wsd",
        cooldown=0.4,
        final=0.0,
        save_every=config.save_every or evaluated_every(config, steps),
    )
    return plan, rows, size


def main(config: Config) -> dict[str, Any]:
    def architecture(vocab_size: int) -> TransformerConfig:
        return model_config(config.depth, config.context, vocab_size)

    return run_text(config, "transformer", architecture, Transformer, plan_of=plan_of, attends=True)
