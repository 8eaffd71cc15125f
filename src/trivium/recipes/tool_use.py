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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trivium import hub, models
from trivium.data import ConversationBatches, Conversations, conversations
from trivium.errors import UsageError
from trivium.files import read_json_lines, write_atomic
from trivium.language.adapters import CONFIG, add_lora, load_adapter, save_adapter
from trivium.language.chat_template import ChatTemplate
from trivium.language.losses import masked_token
from trivium.language.pretrained import LanguageModel
from trivium.language.rendering import render
from trivium.language.tokenizer import Tokenizer
from trivium.nn.lora import LoRALinear, lora_layers
from trivium.recipes import tool_requests
from trivium.recipes.config import RecipeConfig
from trivium.recipes.run import Run
from trivium.recipes.tool_requests.dialogues import dialogues
from trivium.recipes.tool_requests.problems import Problem, read_problems
from trivium.recipes.tool_requests.replay import Reply, replies
from trivium.recipes.tool_requests.written import part
from trivium.train import TrainConfig, train

TEMPLATE = Path(tool_requests.__file__).parent / "chat_template.jinja"
REPLIES = "replies.jsonl"
HELD_OUT = 60  # conversations of requests that are not trained on
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
    start: str = ""  # an adapter to go on from
    steps: int = 840  # one row each
    length: int = 2048  # tokens of a row, of which those of a list of tools stand there once
    conversations: int = 20_000  # that are made, of one to three requests
    plain: int = 1200  # answers of the untrained model that are learnt again
    rank: int = 16  # of the adapter
    skipped: int = 6  # blocks at the bottom that stay as they are
    learning_rate: float = 1.5e-3  # at its peak
    evaluate_every: int = 100  # steps


def main(config: Config) -> dict[str, Any]:
    run = Run.start(config)
    if run.results is not None:
        return run.results
    path = hub.find(config.model)
    loaded = models.load(path, device=str(run.device), precision="bfloat16")
    plain = _plain(run, config, path)
    count = DRY if config.dry_run else config.conversations
    problems = read_problems(config.problems) if config.problems else []
    made = _made(plain, problems, config.seed, count)
    corpus = conversations(made, name="conversations with tools")
    held_out = conversations(_made(plain, problems, config.seed + 1, HELD_OUT, held=True))
    own = "made by this recipe"
    run.data(corpus, licence=f"{own}; {config.problems}: its own" if problems else own)
    batches = _batches(corpus, loaded, plain, config, seed=config.seed)
    adapt(loaded, config)
    plan = _plan(config)
    if config.dry_run:
        return run.estimate(loaded.model, masked_token, batches, plan)
    held_rows = list(_batches(held_out, loaded, plain, config, seed=None, epochs=1))
    loss = held_out_loss(loaded.model, held_rows)
    run.evaluated(0, held_out_loss=loss)
    for step in run.steps(
        train(loaded.model, masked_token, batches, plan, folder=run.folder), plan
    ):
        if step.number % config.evaluate_every == 0 or step.last:
            loss = held_out_loss(loaded.model, held_rows)
            run.evaluated(step.number, held_out_loss=loss)
    if run.first:
        write_adapter(loaded, run.folder, config)
    return run.finish({"loss on held-out conversations": loss}, limits=LIMITS)


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
    found = []
    if kept.is_file():
        for record in read_json_lines(kept, skip_broken=True):
            past = tuple((asked, said) for asked, said in record["past"])
            found.append(Reply(past, record["request"], record["answer"], record["whole"]))
    if len(found) < config.plain:
        found = []
        with run.progress("answers of the untrained model", config.plain) as bar:
            for reply in replies(models.load(path), config.plain, config.seed + 1):
                found.append(reply)
                bar.show(len(found), "")
        lines = [json.dumps(dataclasses.asdict(r), ensure_ascii=False) + "\n" for r in found]
        write_atomic(kept, "".join(lines))
    return found


def _made(
    plain: Sequence[Reply],
    problems: Sequence[Problem],
    seed: int,
    count: int,
    *,
    held: bool = False,
) -> list[dict[str, Any]]:
    """Conversations as records. One reply and one problem of HELD are kept for those held back."""
    made = islice(dialogues(seed, part(plain, held), part(problems, held), held=held), count)
    return [{"messages": d.messages, "tools": d.tools or None} for d in made]


class Spelling:
    """Conversations as tokens. The last answer of some was cut: it has no end that is learnt."""

    def __init__(self, tokenizer: Tokenizer, plain: Sequence[Reply]) -> None:
        self._tokenizer, self._template = tokenizer, ChatTemplate(TEMPLATE.read_text())
        self._cut = {reply.answer for reply in plain if not reply.whole}

    def __call__(
        self, messages: Sequence[Mapping[str, Any]], tools: Any
    ) -> tuple[list[int], list[bool]]:
        ids, learnt = render(self._tokenizer, self._template, messages, tools)
        if messages[-1].get("content") in self._cut:
            learnt[len(learnt) - 1 - learnt[::-1].index(True)] = False
        return ids, learnt


def _batches(
    corpus: Conversations,
    loaded: LanguageModel,
    plain: Sequence[Reply],
    config: Config,
    **order: Any,
) -> ConversationBatches:
    spelling = Spelling(loaded.tokenizer, plain)
    filler = loaded.tokenizer.control_tokens["<|im_end|>"]
    return ConversationBatches(
        corpus,
        spelling,
        rows=1,
        length=config.length,
        filler=filler,
        too_long="drop",
        shared=True,
        **order,
    )


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
    if config.start:
        load_adapter(loaded.model, Path(config.start).expanduser())
        loaded.model.train()
        return
    add_lora(loaded.model, config.rank, 2.0 * config.rank)
    for name, layer in list(lora_layers(loaded.model)):
        if int(name.split(".")[1]) < config.skipped:
            parent, _, child = name.rpartition(".")
            setattr(loaded.model.get_submodule(parent), child, layer.base)
    loaded.model.train()


@torch.no_grad()
def held_out_loss(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """Nats per token that the assistant says."""
    model.eval()
    device = next(model.parameters()).device
    total = weight = 0.0
    with torch.autocast(device.type, torch.bfloat16):
        for batch in batches:
            loss = masked_token(model, {name: value.to(device) for name, value in batch.items()})
            total, weight = total + float(loss.total), weight + float(loss.weight)
    model.train()
    return total / weight


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
