"""Teach the default model to use its tools, from conversations made on the spot.

It gives a LoRA adapter, as `trivium.llmos.shipped` loads it. The data are those of
`trivium.recipes.tool_requests`: word problems, sums, files, code, tools of other people, requests
that need none. Conversations with the same list of tools share rows, which hold the list once: most
are short, and beside it they would be lost. Only what the assistant says is learnt, calls with
their end and answers. Plain answers are the untrained model's own (self-distillation: Yang et al.
2024), so that it still talks as it did.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trivium import hub, models
from trivium.data import IGNORE
from trivium.errors import UsageError
from trivium.files import read_json_lines, write_atomic
from trivium.language.adapters import (
    CONFIG,
    add_lora,
    copy_changes,
    read_adapter,
    save_adapter,
)
from trivium.language.losses import head_loss, masked_token
from trivium.language.pretrained import LanguageModel
from trivium.language.transformer import Transformer
from trivium.nn.lora import LoRALinear, lora_layers
from trivium.recipes.config import RecipeConfig
from trivium.recipes.run import Run
from trivium.recipes.tool_requests.problems import read_problems
from trivium.recipes.tool_requests.replay import Reply, replies
from trivium.recipes.tool_requests.rows import TEMPLATE, MadeRows, Maker
from trivium.train import TrainConfig, rank, train, world_size

REPLIES = "replies.jsonl"
DRY = 20
LIMITS = (
    "The adapter is for this model and for tool lists in the form of its chat_template.jinja. It "
    "knows the built-in tools best. Results come from the calculator, but which sum is asked for "
    "is the model's guess: check what matters. It costs general ability: let the published weights "
    "answer what needs no tool, as the kernel does."
)


@dataclass(frozen=True)
class Config(RecipeConfig):
    model: str = hub.DEFAULT  # whose chat template is ChatML
    problems: str = ""  # a file of word problems in the form of GSM8K, besides those made up
    start: str = ""  # an adapter to go on from, of this rank or a lower one
    steps: int = 840  # of the optimizer
    rows: int = 1  # of a step
    length: int = 2048  # tokens of a row, of which those of a list of tools stand there once
    lot: int = 1000  # conversations that are made at a time, each lot with numbers of its own
    processes: int = 0  # that make them beside the training; 0: a thread does
    held_out: int = 60  # conversations of requests that are not trained on
    plain: int = 1200  # answers of the untrained model that are learnt again
    replies: str = ""  # the replies.jsonl of another run: to make such answers takes minutes
    rank: int = 16  # of the adapter
    skipped: int = 6  # blocks at the bottom that stay as they are
    dropout: float = 0.0  # of what the adapter's matrices see
    asked: float = 0.0  # weight of the loss of requests, beside that of what the assistant says
    learning_rate: float = 1.5e-3  # at its peak
    evaluate_every: int = 100  # steps


def main(config: Config) -> dict[str, Any]:
    run = Run.start(config)
    if run.results is not None:
        return run.results
    path = hub.find(config.model)
    loaded = models.load(path, device=str(run.device), precision="bfloat16")
    plain = _plain(run, config, path)
    problems = read_problems(config.problems) if config.problems else []
    maker = Maker(loaded.tokenizer, plain, problems, config.length, config.asked)
    first = maker.conversations(f"{config.seed}/0", DRY if config.dry_run else config.lot)
    own = "made by this recipe; these are the first of them"
    run.data(first, licence=f"{own}; {config.problems}: its own" if problems else own)
    batches = MadeRows(
        maker,
        rows=config.rows,
        lot=config.lot,
        seed=config.seed,
        processes=config.processes,
        source=first.fingerprint,
        rank=rank(),
        world=world_size(),
    )
    adapt(loaded, config)
    plan = _plan(config)
    if config.dry_run:
        return run.estimate(loaded.model, masked_token, batches, plan)
    kept = maker.conversations(config.seed + 1, config.held_out, held=True)
    held_rows = list(maker.rows(kept, seed=None))
    if not held_rows:
        raise UsageError(
            f"held_out={config.held_out}: none of them is of {config.length} tokens or less"
        )
    found = held_out(loaded.model, held_rows)
    run.evaluated(0, **found)
    for step in run.steps(
        train(loaded.model, masked_token, batches, plan, folder=run.folder), plan
    ):
        if step.number % config.evaluate_every == 0 or step.last:
            found = held_out(loaded.model, held_rows)
            run.evaluated(step.number, **found)
    if run.first:
        write_adapter(loaded, run.folder, config)
    return run.finish(
        {
            "loss on held-out conversations": found["held_out_loss"],
            "those of which every token was foretold": found["held_out_whole"],
        },
        limits=LIMITS,
    )


def _plan(config: Config) -> TrainConfig:
    return TrainConfig(
        steps=config.steps,
        learning_rate=config.learning_rate,
        weight_decay=0.0,
        betas=(0.9, 0.98),
        schedule="wsd",
        cooldown=0.7,
        warmup=min(25, config.steps // 4),
        final=0.03,
        precision="bfloat16",
        save_every=40,
        seed=config.seed,
        device=config.device,
    )


# -- data -----------------------------------------------------------------------------------------


def _plain(run: Run, config: Config, path: Path) -> list[Reply]:
    """What the untrained model says, kept in the run's folder: it takes minutes."""
    if config.dry_run:
        return [Reply((), "Hello!", "Hello! How can I help you today?", True)]
    kept = run.folder / REPLIES
    given = Path(config.replies).expanduser()
    if config.replies and not given.is_file():
        raise UsageError(f"replies={config.replies}: no such file")
    if len(found := _kept(kept)) >= config.plain:
        return found
    if len(found := _kept(given)) < config.plain:
        found = []
        with run.progress("answers of the untrained model", config.plain) as bar:
            for reply in replies(models.load(path), config.plain, config.seed + 1):
                found.append(reply)
                bar.show(len(found), "")
    lines = [json.dumps(dataclasses.asdict(r), ensure_ascii=False) + "\n" for r in found]
    write_atomic(kept, "".join(lines))
    return found


def _kept(path: Path) -> list[Reply]:
    """The replies in a file; none if there is no file."""
    if not path.is_file():
        return []
    return [
        Reply(
            tuple((asked, said) for asked, said in r["past"]), r["request"], r["answer"], r["whole"]
        )
        for r in read_json_lines(path, skip_broken=True)
    ]


# -- the adapter ----------------------------------------------------------------------------------


def adapt(loaded: LanguageModel, config: Config) -> None:
    """Give the model an adapter, the one to go on from or a new one on all but its first blocks:
    those cost as much as the others, and without them the gradient need not go that far down."""
    blocks = len(loaded.model.layers)
    if not 0 <= config.skipped < blocks:
        raise UsageError(
            f"skipped={config.skipped}: the model has {blocks} blocks, one must be left"
        )
    torch.manual_seed(config.seed)
    add_lora(loaded.model, config.rank, 2.0 * config.rank, dropout=config.dropout)
    for name, layer in list(lora_layers(loaded.model)):
        if int(name.split(".")[1]) < config.skipped:
            parent, _, child = name.rpartition(".")
            setattr(loaded.model.get_submodule(parent), child, layer.base)
    if config.start:
        begin_with(loaded.model, Path(config.start).expanduser())
    loaded.model.train()


def begin_with(model: Transformer, folder: Path) -> None:
    """Let the adapter of a model compute what the one in `folder` does.

    Raises UsageError if that is of a higher rank, or has blocks that the adapter has not.
    """
    given, layers = read_adapter(folder, model.config), dict(lora_layers(model))
    if absent := sorted(given.parts.keys() - layers.keys()):
        raise UsageError(f"{folder} changes {absent[0]}, which skipped= leaves as it is")
    own = next(iter(layers.values())).rank
    if given.rank > own:
        raise UsageError(f"{folder} is of rank {given.rank}: rank={own} is too low")
    copy_changes(model, given)


@torch.no_grad()
def held_out(model: Transformer, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """`held_out_loss`: nats per token that the assistant says; `held_out_whole`: the share of
    conversations of which each such token is the likeliest, as if it were chosen greedily."""
    model.eval()
    device = next(model.parameters()).device
    total, tokens, texts, wrong = 0.0, 0, 0, 0
    for batch in batches:
        here = {name: value.to(device) for name, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16):
            learnt = here["targets"] != IGNORE
            features = model.features(here["ids"], segments=here["segments"])[learnt]
            targets = here["targets"][learnt]
            total += float(head_loss(model, features, targets))
            likeliest = model.logits(features).argmax(-1)
        rows = torch.arange(len(learnt), device=device)[:, None] * learnt.shape[1]
        text = (rows + here["segments"])[learnt]
        texts += len(set(text.tolist()))
        wrong += len(set(text[likeliest != targets].tolist()))
        tokens += len(targets)
    model.train()
    return {"held_out_loss": total / tokens, "held_out_whole": 1 - wrong / texts}


def write_adapter(loaded: LanguageModel, folder: Path, config: Config) -> None:
    """The adapter in bfloat16, with its chat template; it names the blocks that have changes."""
    for _, layer in lora_layers(loaded.model):
        assert isinstance(layer, LoRALinear)
        layer.parts.to(torch.bfloat16)
    save_adapter(loaded.model, folder, base=config.model)
    written = json.loads((folder / CONFIG).read_text())
    adapted = {int(name.split(".")[1]) for name, _ in lora_layers(loaded.model)}
    written["layers_to_transform"] = sorted(adapted)
    write_atomic(folder / CONFIG, json.dumps(written, indent=2) + "\n")
    shutil.copyfile(TEMPLATE, folder / "chat_template.jinja")
