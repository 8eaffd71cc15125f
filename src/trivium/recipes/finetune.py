"""Fine-tune a model to classify texts; what it costs, what lowers the price.

    P(y | x) = softmax(h_n W_y),    L = L_FT + λ·L_PT       (Radford et al. 2018)

From the same base, side by side:

    probe     only W_y is learnt; the model stays as it is
    lora      W_y and an adapter of low rank (Hu et al. 2021)
    full      all weights, with each λ of `weights`
    replay    all weights, and beside the task text of the kind the base was trained on, with λ

Each is judged by its accuracy on held-out texts and by how well it still predicts the base's own
kind of text (bits per byte: forgetting). The most accurate model is kept.
"""

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trivium.data import TokenBatches, documents
from trivium.errors import UsageError
from trivium.files import append_json, read_json_lines
from trivium.intervals import wilson
from trivium.language.adapters import add_lora
from trivium.language.classifier import Classifier, classification
from trivium.language.losses import next_token
from trivium.language.tokenizer import Tokenizer
from trivium.nn.lora import merge
from trivium.recipes.base_model import open_base
from trivium.recipes.config import RecipeConfig
from trivium.recipes.docstrings import Labelled, docstrings
from trivium.recipes.hardware import fast_precision
from trivium.recipes.language_model import Held, Text, end_of, token_batches
from trivium.recipes.run import Run
from trivium.train import Loss, TrainConfig, restore_best, train

REPLAYED = 8  # rows of the base's text beside a batch of the task
POINTS = "points.jsonl"


@dataclass(frozen=True)
class Config(RecipeConfig):
    data: str = ""  # JSONL with text and label; "": docstrings of Python, by package
    general: str = ""  # text of the kind the base was trained on; "": the reference inside CPython
    model: str = ""  # a name, folder or file; "": a small GPT is pre-trained on `general`
    weights: tuple[float, ...] = (0.0, 0.5, 2.0)  # λ of the runs that train all weights
    replay: float = 0.5  # λ of the run with text of the base's kind
    rank: int = 8  # of the adapter
    epochs: float = 2.0  # rounds of the task's texts
    rows: int = 16  # texts of a step
    context: int = 128  # tokens of a text; longer ones are cut
    learning_rate: float = 5e-4  # of all weights; the adapter and the probe take 5 times as much
    held_out: float = 0.2  # of the texts


@dataclass(frozen=True)
class Task:
    """Texts as ids, in two parts, and their classes."""

    train: list[tuple[list[int], int]]
    held_out: list[tuple[list[int], int]]
    classes: tuple[str, ...]
    filler: int


def main(config: Config) -> dict[str, Any]:
    run = Run.start(config)
    if run.results is not None:
        return run.results
    base, tokenizer, _ = open_base(run, config, config.model, config.general)
    task = _task(run, config, tokenizer, min(config.context, base.config.context))
    general = Text(*documents(config.general or None).split(0.1), tokenizer)
    held = Held(general, length=min(256, base.config.context))
    ways = [("probe", 0.0), ("lora", 0.0), *(("full", w) for w in config.weights)]
    ways += [("replay", config.replay)] if config.replay else []
    if config.dry_run:
        model = Classifier.of(base, task.classes)
        plan = _plan(config, task, run, "full")
        return run.estimate(model, classification(0.0), Texts(task, config, None), plan)
    before = held.bits_per_byte(base.to(run.device))
    run.tell(f"before: {before:.4f} bits per byte of text like that of the base")
    journal = run.folder / POINTS
    found = list(read_json_lines(journal, skip_broken=True)) if journal.is_file() else []
    done = {(p["way"], p["weight"]): p for p in found}
    for way, weight in ways:
        if (way, weight) not in done:
            point = _measure(run, config, base, task, general, held, way, weight)
            if run.first:
                append_json(journal, point)
            done[way, weight] = point
    return _report(run, config, base, tokenizer, task, before, [done[way] for way in ways])


# -- the task -------------------------------------------------------------------------------------


def _task(run: Run, config: Config, tokenizer: Tokenizer, length: int) -> Task:
    texts = _labelled(config.data) if config.data else docstrings()
    classes = tuple(sorted({text.label for text in texts}))
    if len(classes) < 2:
        raise UsageError(f"{config.data}: all texts have the label {classes[0]!r}")
    random.Random(config.seed).shuffle(texts)
    ids = tokenizer.encode_many([text.text for text in texts])
    begin = end_of(tokenizer)
    items = [
        ([begin, *own][:length], classes.index(text.label))
        for own, text in zip(ids, texts, strict=True)
    ]
    border = round(len(items) * config.held_out)
    if not 0 < border < len(items):
        raise UsageError(f"{len(items)} texts are too few to hold {config.held_out:g} of them out")
    name = config.data or "docstrings of Python's standard library"
    run.data(documents([f"{t.label}\t{t.text}" for t in texts], name=name), "task")
    return Task(items[border:], items[:border], classes, begin)


def _labelled(source: str) -> list[Labelled]:
    path = Path(source).expanduser()
    if not path.is_file():
        raise UsageError(f"no such file: {source}")
    found = []
    for number, record in enumerate(read_json_lines(path), start=1):
        text, label = record.get("text"), record.get("label")
        if not isinstance(text, str) or not text or not isinstance(label, str | int | bool):
            raise UsageError(f"{source}, record {number}: expected a text and a label")
        found.append(Labelled(text, str(label)))
    if not found:
        raise UsageError(f"{source} is empty")
    return found


def _padded(items: Sequence[tuple[list[int], int]], filler: int) -> dict[str, Tensor]:
    longest = max(len(ids) for ids, _ in items)
    return {
        "ids": torch.tensor([ids + [filler] * (longest - len(ids)) for ids, _ in items]),
        "lengths": torch.tensor([len(ids) for ids, _ in items]),
        "labels": torch.tensor([label for _, label in items]),
    }


class Texts:
    """Batches of the task in an order that is drawn anew each round, and of other text beside
    them."""

    def __init__(self, task: Task, config: Config, general: TokenBatches | None) -> None:
        self._task, self._config, self._general = task, config, general
        self._number = 0

    def state(self) -> dict[str, Any]:
        return {"number": self._number, "general": self._general and self._general.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        self._number = state["number"]
        if self._general is not None:
            self._general.load(state["general"])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rows, items = self._config.rows, self._task.train
        per_round = max(1, len(items) // rows)
        general = iter(self._general) if self._general is not None else None
        while True:
            turn, place = divmod(self._number, per_round)
            order = list(range(len(items)))
            random.Random(f"{self._config.seed}/{turn}").shuffle(order)
            chosen = [items[i] for i in order[place * rows : (place + 1) * rows]]
            batch = _padded(chosen, self._task.filler)
            if general is not None:
                batch |= {f"general_{name}": value for name, value in next(general).items()}
            self._number += 1
            yield batch


def replayed(weight: float) -> Any:
    """L_FT + λ·(the mean loss of the next token on text of the base's kind)."""
    task = classification(0.0)

    def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
        assert isinstance(model, Classifier)
        found = task(model, batch)
        other = {
            k.removeprefix("general_"): v for k, v in batch.items() if k.startswith("general_")
        }
        general = next_token(model.body, other)
        mean = general.total / general.weight
        return found._replace(total=found.total + weight * found.weight * mean)

    return loss


# -- one way to fine-tune -------------------------------------------------------------------------


def _plan(config: Config, task: Task, run: Run, way: str) -> TrainConfig:
    steps = max(1, round(config.epochs * len(task.train) / config.rows))
    return TrainConfig(
        steps=steps,
        learning_rate=config.learning_rate * (5 if way in ("probe", "lora") else 1),
        weight_decay=0.01,
        warmup=max(1, steps // 10),
        schedule="linear",
        final=0.0,
        precision=fast_precision(run.device),
        save_every=200,
        keep=1,
        seed=config.seed,
        device=config.device,
    )


def _folder(run: Run, way: str, weight: float) -> Path:
    return run.folder / "runs" / (f"{way}-{weight:g}" if weight else way)


def _made(config: Config, base: Any, task: Task, way: str) -> Classifier:
    """A classifier around a copy of the base, with what is to be learnt left free."""
    body = copy.deepcopy(base)
    torch.manual_seed(config.seed)
    if way == "probe":
        body.requires_grad_(False)
    if way == "lora":
        add_lora(body, config.rank, 2.0 * config.rank)
    return Classifier.of(body, task.classes)


def _measure(
    run: Run,
    config: Config,
    base: Any,
    task: Task,
    general: Text,
    held: Held,
    way: str,
    weight: float,
) -> dict[str, Any]:
    model, plan = _made(config, base, task, way), _plan(config, task, run, way)
    other, loss = None, classification(weight)
    if way == "replay":
        length = min(config.context, base.config.context)
        other = token_batches(
            general.train, general.tokenizer, rows=REPLAYED, length=length, seed=config.seed
        )
        loss = replayed(weight)
    label = f"{way}, λ {weight:g}" if way in ("full", "replay") else way
    with run.progress(label, plan.steps) as bar:
        steps = train(
            model, loss, Texts(task, config, other), plan, folder=_folder(run, way, weight)
        )
        for step in steps:
            bar.show(step.number, f"loss {step.loss:.3f}, accuracy {step.metrics['accuracy']:.0%}")
            if step.last:
                step.judge(0.0)  # so that its weights are kept
    right, nats = _judged(model, task, run.device)
    point = {
        "way": way,
        "weight": weight,
        "learnt": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "accuracy": right / len(task.held_out),
        "task_loss": nats,
        "bits_per_byte": held.bits_per_byte(model.body),
    }
    run.tell(
        f"{label}: accuracy {point['accuracy']:.1%}, {point['bits_per_byte']:.4f} bits per byte"
    )
    return point


@torch.no_grad()
def _judged(model: Classifier, task: Task, device: torch.device) -> tuple[int, float]:
    """How many held-out texts are right, and the mean of −ln P(y | x)."""
    model.eval()
    right, total = 0, 0.0
    for start in range(0, len(task.held_out), 64):
        batch = _padded(task.held_out[start : start + 64], task.filler)
        scores = model(batch["ids"].to(device), batch["lengths"].to(device)).float().cpu()
        right += int((scores.argmax(-1) == batch["labels"]).sum())
        log_p = scores.log_softmax(-1).gather(1, batch["labels"][:, None])
        total -= float(log_p.sum())
    return right, total / len(task.held_out)


def _report(
    run: Run,
    config: Config,
    base: Any,
    tokenizer: Tokenizer,
    task: Task,
    before: float,
    points: list[dict[str, Any]],
) -> dict[str, Any]:
    count = len(task.held_out)
    most = max(sum(label == k for _, label in task.held_out) for k in range(len(task.classes)))
    rows = [("always the most frequent", "", "0", f"{most / count:.1%}", "", f"{before:.4f}", "")]
    for p in points:
        low, high = wilson(round(p["accuracy"] * count), count)
        rows.append(
            (
                p["way"],
                f"{p['weight']:g}" if p["way"] in ("full", "replay") else "",
                f"{p['learnt']:,}",
                f"{p['accuracy']:.1%} ({low:.1%} – {high:.1%})",
                f"{p['task_loss']:.3f}",
                f"{p['bits_per_byte']:.4f}",
                f"{p['bits_per_byte'] / before - 1:+.1%}",
            )
        )
    headers = ("way", "λ", "learnt", "accuracy", "loss", "bits per byte", "forgotten")
    run.tables.append((f"{count} held-out texts, {len(task.classes)} classes", headers, rows))
    best = max(points, key=lambda p: p["accuracy"])
    _keep(run, config, base, tokenizer, task, best)
    return run.finish(
        {
            "best way": f"{best['way']}, λ {best['weight']:g}",
            "accuracy": best["accuracy"],
            "of held-out texts": count,
            "classes": len(task.classes),
            "bits per byte before": before,
            "bits per byte after": best["bits_per_byte"],
        }
    )


def _keep(
    run: Run, config: Config, base: Any, tokenizer: Tokenizer, task: Task, best: Mapping[str, Any]
) -> None:
    model = _made(config, base, task, best["way"])
    restore_best(model, _folder(run, best["way"], best["weight"]))
    if best["way"] == "lora":
        merge(model.body)
    run.save_model(model, "classifier", model.config, tokenizer)
