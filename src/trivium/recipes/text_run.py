"""The run that the recipes of language models share: train on a text, measure, write, keep.

A recipe says what the model is and, if that is not the next token, what it learns:

    def main(config: Config) -> dict[str, Any]:
        return run_text(config, "recurrent", architecture, Recurrent)

Behind it stands how far back the model looks: the loss of the same held-out tokens when it is shown
only so much before them, in bytes of text, so that models of different tokenizers can be compared.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from trivium.data import Documents
from trivium.errors import UsageError
from trivium.language import bpe
from trivium.language.losses import next_token
from trivium.language.pretrained import load_pretrained
from trivium.language.reach import by_history, powers, windows
from trivium.language.tokenizer import Tokenizer
from trivium.recipes.chart import Chart
from trivium.recipes.config import RecipeConfig, shared
from trivium.recipes.hardware import fast_precision, flops_per_token
from trivium.recipes.language_model import (
    Held,
    LossFunction,
    Text,
    end_of,
    micro_batch,
    open_text,
    sample,
)
from trivium.recipes.run import Run
from trivium.train import Step, TrainConfig, restore_best, train, world_size

Measures = dict[str, float]
ENOUGH = 1.01  # of the loss with everything shown: from here on, more changes little


@dataclass(frozen=True)
class TextConfig(RecipeConfig):
    data: str = ""  # text: a file, folder, glob or hf:NAME; "": the reference inside CPython
    context: int = 256  # tokens of a window
    vocab_size: int = 1024  # of the tokenizer that is made from the data
    tokenizer: str = ""  # a model or folder whose tokenizer is taken instead
    steps: int = 0  # 0: as many as make `rounds` rounds of the data
    rounds: float = 8.0  # of the data, if `steps` are not given
    batch: int = 2048  # tokens of a step
    learning_rate: float = 1e-2  # at its peak
    optimizer: Literal["adamw", "muon"] = "adamw"  # of matrices inside the blocks
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of products
    evaluate_every: int = 0  # steps; 0: ten times
    patience: int = 0  # evaluations in a row without gain that end the run; 0: it runs to its end
    save_every: int = 0  # steps; 0: at every evaluation
    prompt: str = "The "  # of the samples
    compare: str = ""  # folders of other language models, whose reach is drawn beside


@dataclass(frozen=True)
class Objective:
    """What a model learns, and how it is measured.

    loss: (model, batch) → Loss
    prepare: from batches of text and the seed to those that the loss takes
    measures: of a model on held-out text, of which the first is to become small
    reads_on: whether the model continues texts, and so can be sampled
    special: tokens of the tokenizer that is made
    """

    loss: LossFunction = next_token
    prepare: Callable[[Any, Text, int], Any] = lambda batches, text, seed: batches
    measures: Callable[[Any, Held, Text], Measures] = lambda model, held, text: {
        "bits_per_byte": held.bits_per_byte(model)
    }
    reads_on: bool = True
    special: Sequence[str] = bpe.SPECIAL


def plan_of(
    config: TextConfig, text: Text, parameters: int, device: Any
) -> tuple[TrainConfig, int, int]:
    """How to train, the rows of a micro-batch, and the tokens of a step."""
    rows, accumulate = micro_batch(config.batch, config.context, device)
    size = rows * accumulate * world_size() * config.context
    steps = config.steps or max(10, math.ceil(config.rounds * text.tokens / size))
    plan = shared(
        TrainConfig,
        config,
        steps=steps,
        accumulate=accumulate,
        precision=fast_precision(device) if config.precision == "auto" else config.precision,
        warmup=max(1, steps // 20),
        save_every=config.save_every or evaluated_every(config, steps),
    )
    return plan, rows, size


def evaluated_every(config: TextConfig, steps: int) -> int:
    return config.evaluate_every or max(1, steps // 10)


def run_text(
    config: TextConfig,
    kind: str,
    architecture: Callable[[int], Any],
    build: Callable[[Any], nn.Module],
    objective: Objective | None = None,
    *,
    plan_of: Callable[[Any, Text, int, Any], tuple[TrainConfig, int, int]] = plan_of,
    attends: bool = False,
    behind: Callable[[Run, Any, Text], Measures] = lambda run, model, text: {},
    limits: str = "It continues text like that which it learnt from, and knows nothing else.",
) -> dict[str, Any]:
    """Run a recipe to its end.

    kind: of trivium.models.KINDS
    architecture: from the size of the vocabulary to the model's config
    plan_of: from the config, the text, the count of parameters and the device to how to train
    attends: whether every layer looks at all of the context, which is counted in the FLOPs
    behind: what else is measured, drawn and written when the model is trained
    """
    others = _others(config.compare)
    run = Run.start(config)
    if run.results is not None:
        return run.results
    task = objective or Objective()
    text = open_text(
        run,
        config.data,
        vocab_size=config.vocab_size,
        tokenizer=config.tokenizer,
        special=task.special,
    )
    settings = architecture(text.vocab_size)
    model = build(settings)
    parameters = sum(p.numel() for p in model.parameters())
    plan, rows, size = plan_of(config, text, parameters, run.device)
    batches = text.batches(rows=rows, length=config.context, seed=config.seed)
    prepared = task.prepare(batches, text, config.seed)
    looking = {"layers": settings.layers, "width": settings.width} if attends else {}
    flops = flops_per_token(model, length=config.context, **looking)
    cost: dict[str, Any] = {"tokens": size, "flops_per_token": flops}
    if config.dry_run:
        return run.estimate(model, task.loss, prepared, plan, **cost)
    run.tell(
        f"{parameters / 1e6:.1f}M parameters, {plan.steps:,} steps of {size:,} tokens "
        f"({plan.steps * size / text.tokens:.1f} rounds of the data), {plan.precision}"
    )
    held = Held(text, length=config.context)
    steps = train(model, task.loss, prepared, plan, folder=run.folder)
    every = evaluated_every(config, plan.steps)
    _watch(run.steps(steps, plan, **cost), every, run, config, task, model, held, text)
    best = restore_best(model, run.folder)
    results: dict[str, Any] = {
        name.replace("_", " "): value for name, value in task.measures(model, held, text).items()
    }
    if task.reads_on:
        results |= draw_reach(run, model, text, others)
    results |= behind(run, model, text)
    run.save_model(model, kind, settings, text.tokenizer)
    results |= {
        "of held-out bytes": held.bytes,
        "best step": best,
        "parameters": parameters,
        "tokens": plan.steps * size,
        "bytes per token": text.bytes_per_token,
    }
    return run.finish(results, limits=limits)


def _watch(
    steps: Iterable[Step],
    every: int,
    run: Run,
    config: TextConfig,
    task: Objective,
    model: nn.Module,
    held: Held,
    text: Text,
) -> None:
    """Go through the steps, and measure, sample and judge the model now and then."""
    for step in steps:
        if step.last or step.number % every == 0:
            found = task.measures(model, held, text)
            run.evaluated(step.number, **found)
            if task.reads_on:
                run.sample(step.number, sample(model, text.tokenizer, config.prompt))
            if step.judge(next(iter(found.values()))) >= config.patience > 0:
                break


# -- how far back it looks ------------------------------------------------------------------------


@dataclass(frozen=True)
class Reach:
    """Bits per byte of the same held-out tokens, over the bytes of text shown before them."""

    points: list[tuple[float, float]]
    tokens: list[int]

    @property
    def enough(self) -> int:
        """How many tokens have to be shown for the loss to be that of everything, but for 1 %."""
        last = self.points[-1][1]
        fine = [
            k
            for k, (_, bits) in zip(self.tokens, self.points, strict=True)
            if bits <= ENOUGH * last
        ]
        return fine[0]


def reach_of(model: Any, tokenizer: Tokenizer, texts: Documents, context: int) -> Reach | None:
    """None if no text is long enough."""
    end, encoded = end_of(tokenizer), tokenizer.encode_many(list(texts))
    found = windows(([end, *ids] for ids in encoded), context)
    if not len(found):
        return None
    size = sum(len(tokenizer.token_bytes(int(i))) for i in found[:, -1]) / len(found)
    shown = powers(context)
    losses = by_history(model, found, shown)
    points = [(k * size, loss / size / math.log(2)) for k, loss in losses.items()]
    return Reach(points, shown)


def draw_reach(run: Run, model: Any, text: Text, others: Iterable[Path]) -> Measures:
    """Measure it, draw it, and beside it that of other models."""
    series: dict[str, list[tuple[float, float]]] = {}
    own = reach_of(model, text.tokenizer, text.held_out, model.config.context)
    if own is None:
        run.tell("no held-out text is longer than the context: how far back it looks is not known")
        return {}
    series[run.name] = own.points
    found: Measures = {"tokens it looks back": own.enough}
    for other in others:
        peer = load_pretrained(other, device=str(run.device), precision="float32")
        context = min(model.config.context, peer.model.config.context)
        theirs = reach_of(peer.model, peer.tokenizer, text.held_out, context)
        if theirs is not None:
            series[other.name] = theirs.points
            found[f"tokens {other.name} looks back"] = theirs.enough
    chart = Chart(
        "How far back it looks",
        "bytes of text shown before a token",
        "bits per byte",
        series,
        log_x=True,
    )
    run.charts.append(chart)
    names = list(series)
    rows = [
        [
            f"{own.tokens[i]}",
            *(f"{series[name][i][1]:.3f}" for name in names if i < len(series[name])),
        ]
        for i in range(len(own.tokens))
    ]
    run.tables.append(
        ("Bits per byte when only so many tokens are shown", ["tokens", *names], rows)
    )
    return found


def _others(compare: str) -> list[Path]:
    """The folders that `compare` names."""
    paths = [Path(name).expanduser() for name in compare.split(",") if name]
    for path in paths:
        if not path.exists():
            raise UsageError(f"compare={compare}: there is no model {path}")
    return paths
