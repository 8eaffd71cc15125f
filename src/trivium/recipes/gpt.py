"""Pre-train a causal Transformer from raw text; one dial, the depth, sets everything.

GPT (Radford et al. 2018): maximise Σ log P(x_i | x_{i−k} … x_{i−1}; θ) over windows of k tokens.
The blocks are those of today's models: RMSNorm, rotary positions, SwiGLU, no biases.

    width    64 · depth, in heads of 64
    tokens   20 for each parameter (Hoffmann et al. 2022), but at most 4 rounds of the data, beyond
             which repeating it teaches little (Muennighoff et al. 2023)
    step     4·√tokens tokens, as a power of 2, since the batch that pays grows with the data
             (Zhang et al. 2024)
    rate     2e-2 / √(depth / 4) for muon, 3e-3 / √(depth / 4) for adamw
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from trivium.language.losses import next_token
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.recipes.config import RecipeConfig, shared
from trivium.recipes.hardware import fast_precision, flops_per_token
from trivium.recipes.language_model import Held, Text, micro_batch, open_text, sample
from trivium.recipes.run import Run
from trivium.train import TrainConfig, restore_best, train, world_size

TOKENS_PER_PARAMETER = 20
ROUNDS = 4
RATES = {"muon": 2e-2, "adamw": 3e-3}


@dataclass(frozen=True)
class Config(RecipeConfig):
    data: str = ""  # text: a file, folder, glob or hf:NAME; "": the reference inside CPython
    depth: int = 4  # blocks; all other sizes follow
    context: int = 256  # tokens of a window
    vocab_size: int = 4096  # of the tokenizer that is made from the data
    tokenizer: str = ""  # a model or folder whose tokenizer is taken instead
    steps: int = 0  # 0: by the rule above
    batch: int = 0  # tokens of a step; 0: by the rule above
    rows: int = 0  # of a micro-batch; 0: as many as are fast on the device
    learning_rate: float = 0.0  # 0: by the rule above
    optimizer: Literal["muon", "adamw"] = "muon"  # of the matrices of blocks; the rest: adamw
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of products
    checkpointing: bool = False  # less memory, a third more time
    compile: bool = False  # pays on a GPU
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"  # with torchrun
    evaluate_every: int = 0  # steps; 0: ten times
    patience: int = 0  # evaluations in a row without gain that end the run; 0: it runs to its end
    save_every: int = 0  # steps; 0: at every evaluation
    prompt: str = "The "  # of the samples


def model_config(config: Config, vocab_size: int) -> TransformerConfig:
    width = 64 * config.depth
    return TransformerConfig(
        vocab_size=vocab_size,
        context=config.context,
        width=width,
        layers=config.depth,
        heads=config.depth,
        hidden=round(width * 8 / 3 / 64) * 64,
    )


def settings(config: Config, text: Text, parameters: int, device: Any) -> tuple[TrainConfig, int]:
    """How to train, and the rows of a micro-batch."""
    tokens = min(TOKENS_PER_PARAMETER * parameters, ROUNDS * text.tokens)
    batch = config.batch or 2 ** round(math.log2(4 * math.sqrt(config.steps * 4096 or tokens)))
    rows, accumulate = micro_batch(batch, config.context, device, config.rows)
    steps = config.steps or max(10, tokens // (rows * accumulate * world_size() * config.context))
    every = config.evaluate_every or max(1, steps // 10)
    rate = config.learning_rate or RATES[config.optimizer] / math.sqrt(config.depth / 4)
    precision = fast_precision(device) if config.precision == "auto" else config.precision
    plan = shared(
        TrainConfig,
        config,
        steps=steps,
        accumulate=accumulate,
        learning_rate=rate,
        precision=precision,
        warmup=max(1, steps // 50),
        schedule="wsd",
        cooldown=0.4,
        final=0.0,
        save_every=config.save_every or every,
    )
    return plan, rows


def main(config: Config) -> dict[str, Any]:
    run = Run.start(config)
    if run.results is not None:
        return run.results
    text = open_text(run, config.data, vocab_size=config.vocab_size, tokenizer=config.tokenizer)
    architecture = model_config(config, text.vocab_size)
    model = Transformer(architecture)
    parameters = sum(p.numel() for p in model.parameters())
    plan, rows = settings(config, text, parameters, run.device)
    batches = text.batches(rows=rows, length=config.context, seed=config.seed)
    size = rows * plan.accumulate * world_size() * config.context
    flops = flops_per_token(
        model, length=config.context, layers=architecture.layers, width=architecture.width
    )
    cost: dict[str, Any] = {"tokens": size, "flops_per_token": flops}
    if config.dry_run:
        return run.estimate(model, next_token, batches, plan, **cost)
    run.tell(
        f"{parameters / 1e6:.1f}M parameters, {plan.steps:,} steps of {size:,} tokens "
        f"({plan.steps * size / text.tokens:.1f} rounds of the data), {plan.precision}"
    )
    held = Held(text, length=config.context)
    every = config.evaluate_every or max(1, plan.steps // 10)
    steps = train(model, next_token, batches, plan, folder=run.folder)
    for step in run.steps(steps, plan, **cost):
        if step.number % every == 0 or step.last:
            value = held.bits_per_byte(model)
            run.evaluated(step.number, bits_per_byte=value)
            run.sample(step.number, sample(model, text.tokenizer, config.prompt))
            if step.judge(value) >= config.patience > 0:
                break
    best = restore_best(model, run.folder)
    value = held.bits_per_byte(model)
    run.save_model(model, "transformer", architecture, text.tokenizer)
    return run.finish(
        {
            "bits per byte": value,
            "of held-out bytes": held.bytes,
            "best step": best,
            "parameters": parameters,
            "tokens": plan.steps * size,
            "bytes per token": text.bytes_per_token,
        },
        limits="It continues text like that which it learnt from, and knows nothing else.",
    )
