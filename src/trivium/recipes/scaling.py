"""Measure a scaling law: models of several sizes, amounts of data, and a fit.

    L(N, D) = E + A / N^α + B / D^β          (Hoffmann et al. 2022; trivium.language.scaling_law)

Every pair of a width and an amount of data is a run of its own, of a Transformer as the recipe gpt
makes them, with a schedule of its own. The last width is held out: the law is fitted without it,
and predicts its loss. Text that is read up to four times teaches nearly as much as new text
(Muennighoff et al. 2023), and counts as such.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trivium.errors import UsageError
from trivium.files import append_json, read_json_lines, write_atomic
from trivium.language.losses import next_token
from trivium.language.scaling_law import Fit, fit
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.recipes.chart import Chart
from trivium.recipes.config import RecipeConfig
from trivium.recipes.hardware import fast_precision
from trivium.recipes.language_model import Held, Text, micro_batch, open_text
from trivium.recipes.run import Run
from trivium.train import TrainConfig, train, world_size

POINTS = "points.jsonl"
HEAD = 16  # channels of a head


@dataclass(frozen=True)
class Config(RecipeConfig):
    data: str = ""  # text: a file, folder, glob or hf:NAME; "": the reference inside CPython
    widths: tuple[int, ...] = (16, 32, 48, 64, 128)  # of the models; the last is predicted only
    layers: int = 2  # of every model
    amounts: int = 4  # of data, each half of the one before, from `rounds` down
    rounds: float = 4.0  # of the data, in the longest runs
    context: int = 128  # tokens of a window
    vocab_size: int = 1024  # of the tokenizer that is made from the data
    batch: int = 2048  # tokens of a step
    learning_rate: float = 1e-2  # at its peak; muon's steps are alike for all widths
    bootstrap: int = 200  # resampled fits, for the intervals


def main(config: Config) -> dict[str, Any]:
    if len(config.widths) < 4 or config.amounts < 3:
        raise UsageError("a law needs four widths, of which one is held out, and three amounts")
    if any(width % HEAD for width in config.widths):
        raise UsageError(f"widths are multiples of {HEAD}, the width of a head")
    run = Run.start(config)
    if run.results is not None:
        return run.results
    text = open_text(run, config.data, vocab_size=config.vocab_size)
    held = Held(text, length=config.context)
    rows, accumulate = micro_batch(config.batch, config.context, run.device)
    size = rows * accumulate * world_size() * config.context
    most = int(config.rounds * text.tokens / size)
    steps = sorted({max(2, most >> i) for i in range(config.amounts)})
    cells = [(width, count) for width in config.widths for count in steps]
    if config.dry_run:
        model, plan = (
            _model(config, config.widths[-1], text),
            _plan(config, run, steps[-1], accumulate),
        )
        batches = text.batches(rows=rows, length=config.context, seed=config.seed)
        return run.estimate(model, next_token, batches, plan, tokens=size)
    journal = run.folder / POINTS
    found = read_json_lines(journal, skip_broken=True) if journal.is_file() else iter(())
    done = {(point["width"], point["steps"]): point for point in found}
    total = sum(count * size for _, count in cells)
    run.tell(f"{len(cells)} runs, {total:,} tokens in all")
    for width, count in cells:
        if (width, count) not in done:
            plan = _plan(config, run, count, accumulate)
            point = _measure(config, run, text, held, plan, width, rows, size)
            if run.first:
                append_json(journal, point)
            done[width, count] = point
    return _report(config, run, [done[cell] for cell in cells])


def _model(config: Config, width: int, text: Text) -> Transformer:
    torch.manual_seed(config.seed + width)
    return Transformer(
        TransformerConfig(
            vocab_size=text.vocab_size,
            context=config.context,
            width=width,
            layers=config.layers,
            heads=width // HEAD,
            hidden=round(width * 8 / 3 / HEAD) * HEAD,
        )
    )


def _plan(config: Config, run: Run, steps: int, accumulate: int) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        accumulate=accumulate,
        optimizer="muon",
        learning_rate=config.learning_rate,
        warmup=max(1, steps // 20),
        schedule="linear",
        final=0.0,
        precision=fast_precision(run.device),
        save_every=200,
        keep=1,
        seed=config.seed,
        device=config.device,
    )


def _measure(
    config: Config,
    run: Run,
    text: Text,
    held: Held,
    plan: TrainConfig,
    width: int,
    rows: int,
    size: int,
) -> dict[str, Any]:
    """Train one model, and see how well it predicts."""
    model = _model(config, width, text)
    batches = text.batches(rows=rows, length=config.context, seed=config.seed)
    folder = run.folder / "runs" / f"width-{width}-steps-{plan.steps}"
    parameters = sum(p.numel() for p in model.parameters())
    label = f"{parameters / 1e6:.2f}M, {plan.steps * size:,} tokens"
    with run.progress(label, plan.steps) as bar:
        for step in train(model, next_token, batches, plan, folder=folder):
            bar.show(step.number, f"loss {step.loss:.3f}")
    loss = held.loss(model)
    run.tell(f"{label}: {loss:.4f} nats a token on held-out text")
    return {
        "width": width,
        "steps": plan.steps,
        "parameters": parameters,
        "tokens": plan.steps * size,
        "loss": loss,
    }


def _report(config: Config, run: Run, points: list[dict[str, Any]]) -> dict[str, Any]:
    largest = config.widths[-1]
    seen = [point for point in points if point["width"] != largest]
    found = fit(
        [p["parameters"] for p in seen],
        [p["tokens"] for p in seen],
        [p["loss"] for p in seen],
        bootstrap=config.bootstrap,
        seed=config.seed,
    )
    rows, missed = [], []
    for p in points:
        value, low, high = found.predict(p["parameters"], p["tokens"])
        if p["width"] == largest:
            missed.append(abs(value / p["loss"] - 1))
        rows.append(
            (
                f"{p['parameters']:,}",
                f"{p['tokens']:,}",
                f"{p['loss']:.4f}",
                f"{value:.4f}",
                f"{low:.4f} – {high:.4f}",
                "predicted" if p["width"] == largest else "fitted",
            )
        )
    headers = ("parameters N", "tokens D", "loss", "law", "90 % interval", "")
    run.tables.append(("Runs and the law", headers, rows))
    run.charts.append(_chart(points, found, largest))
    _keep_law(run.folder, found)
    results: dict[str, Any] = {}
    for name in ("irreducible", "alpha", "beta", "share"):
        low, high = found.interval([getattr(law, name) for law in found.resampled])
        shown = {"irreducible": "E", "share": "a in N ∝ C^a"}.get(name, name)
        results[shown] = f"{getattr(found.law, name):.3f} ({low:.3f} – {high:.3f})"
    results["largest error of the predictions"] = f"{max(missed):.1%}"
    return run.finish(
        results,
        limits="A law fitted to small models on little text holds near them; how far is not known.",
    )


def _chart(points: list[dict[str, Any]], found: Fit, largest: int) -> Chart:
    """Loss over data: dots are runs, lines the law, one for each size."""
    series: dict[str, list[tuple[float, float]]] = {}
    dots = []
    for width in sorted({p["width"] for p in points}):
        own = [p for p in points if p["width"] == width]
        n = own[0]["parameters"]
        word = "predicted" if width == largest else "law"
        label = f"{n / 1e6:.2g}M"
        series[f"{label} runs"] = [(p["tokens"], p["loss"]) for p in own]
        dots.append(f"{label} runs")
        low, high = own[0]["tokens"], own[-1]["tokens"]
        curve = [low * (high / low) ** (i / 30) for i in range(31)]
        series[f"{label} {word}"] = [(d, found.law(n, d)) for d in curve]
    return Chart(
        "Loss over data", "tokens D", "nats per token", series, log_x=True, points=tuple(dots)
    )


def _keep_law(folder: Path, found: Fit) -> None:
    law = {"law": asdict(found.law), "resampled": [asdict(law) for law in found.resampled]}
    write_atomic(folder / "law.json", json.dumps(law, indent=2))
