"""Continue pre-training on a field or a language; what that gains and loses.

Rows of the domain's text and of general text are mixed in given shares: the domain is up-weighted,
however little of it there is, and the general text keeps what the model knew. For each share the
model starts from the same base. The model of the first share is kept.

With no model and no data, a small GPT that has read CPython's reference learns the language of
molecules (SMILES).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trivium.data import Documents, Mixture, documents
from trivium.errors import UsageError
from trivium.language.losses import next_token
from trivium.language.tokenizer import Tokenizer
from trivium.recipes.base_model import open_base
from trivium.recipes.config import RecipeConfig
from trivium.recipes.hardware import fast_precision
from trivium.recipes.language_model import Held, Text, micro_batch, sample, token_batches
from trivium.recipes.molecules import smiles
from trivium.recipes.run import Run
from trivium.train import TrainConfig, rank, train, world_size

MOLECULES = 20_000


@dataclass(frozen=True)
class Config(RecipeConfig):
    data: str = ""  # text of the domain: a file, folder, glob or hf:NAME; "": generated SMILES
    general: str = ""  # text like that of before; "": the reference inside CPython
    model: str = ""  # a name, folder or file; "": a small GPT is pre-trained on `general`
    shares: tuple[float, ...] = (0.5, 1.0, 0.1)  # of the domain's rows, one run each
    steps: int = 100  # of each run
    context: int = 256  # tokens of a row
    batch: int = 4096  # tokens of a step
    learning_rate: float = 1e-3  # at its peak
    held_out: float = 0.1  # of each text
    prompt: str = ""  # of a sample from the model that is kept


def main(config: Config) -> dict[str, Any]:
    if not config.shares or not all(0 < share <= 1 for share in config.shares):
        raise UsageError("shares are above 0 and at most 1")
    run = Run.start(config)
    if run.results is not None:
        return run.results
    model, tokenizer, template = open_base(run, config, config.model, config.general)
    context = min(config.context, model.config.context)
    domain = _text(config.data, tokenizer, config.held_out, molecules=True)
    general = _text(config.general, tokenizer, config.held_out)
    run.data(domain.train, "domain")
    run.data(general.train, "general")
    held = {"domain": Held(domain, length=context), "general": Held(general, length=context)}
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.to(run.device)
    before = {name: part.bits_per_byte(model) for name, part in held.items()}
    rows, accumulate = micro_batch(config.batch, context, run.device)
    plan = TrainConfig(
        steps=config.steps,
        accumulate=accumulate,
        learning_rate=config.learning_rate,
        warmup=max(1, config.steps // 10),
        precision=fast_precision(run.device),
        save_every=100,
        keep=1,
        seed=config.seed,
        device=config.device,
    )
    after: dict[float, dict[str, float]] = {}
    for share in reversed(config.shares):  # the first one last: its model is kept
        batches = _mixed(config, domain, general, share, rows, context)
        if config.dry_run:
            return run.estimate(model, next_token, batches, plan)
        after[share] = _continue(run, model, start, batches, plan, share, held)
    _show(run, before, after)
    if config.prompt or not config.data:
        run.sample(plan.steps, sample(model, tokenizer, config.prompt))
    run.save_model(model, "transformer", model.config, tokenizer, template)
    kept = after[config.shares[0]]
    return run.finish(
        {
            "domain, bits per byte before": before["domain"],
            "domain, bits per byte after": kept["domain"],
            "general, bits per byte before": before["general"],
            "general, bits per byte after": kept["general"],
            "share of the domain": config.shares[0],
        }
    )


def _text(source: str, tokenizer: Tokenizer, held_out: float, *, molecules: bool = False) -> Text:
    whole: Documents
    if molecules and not source:
        whole = documents(list(smiles(MOLECULES)), name="SMILES strings, generated")
    else:
        whole = documents(source or None)
    return Text(*whole.split(held_out), tokenizer)


def _mixed(
    config: Config, domain: Text, general: Text, share: float, rows: int, length: int
) -> Mixture:
    parts = [(domain, share), (general, 1 - share)]
    settings: dict[str, Any] = {"rows": rows, "length": length, "seed": config.seed}
    settings |= {"rank": rank(), "world": world_size()}
    return Mixture(
        [
            (token_batches(text.train, text.tokenizer, **settings), weight)
            for text, weight in parts
            if weight > 0
        ]
    )


def _continue(
    run: Run,
    model: nn.Module,
    start: Mapping[str, Tensor],
    batches: Mixture,
    plan: TrainConfig,
    share: float,
    held: Mapping[str, Held],
) -> dict[str, float]:
    """Train from the start with this share; the bits per byte afterwards."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(start[name])
    folder = run.folder / "runs" / f"share-{share:g}"
    with run.progress(f"share {share:g}", plan.steps) as bar:
        for step in train(model, next_token, batches, plan, folder=folder):
            bar.show(step.number, f"loss {step.loss:.3f}")
            run.log(step.number, **{f"loss_share_{share:g}": step.loss})
    found = {name: part.bits_per_byte(model) for name, part in held.items()}
    said = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    run.tell(f"share {share:g}: bits per byte of {said}")
    return found


def _show(
    run: Run, before: Mapping[str, float], after: Mapping[float, Mapping[str, float]]
) -> None:
    rows = [("before", f"{before['domain']:.4f}", "", f"{before['general']:.4f}", "")]
    for share, found in sorted(after.items()):
        gains = [f"{found[name] / before[name] - 1:+.1%}" for name in ("domain", "general")]
        rows.append(
            (f"{share:g}", f"{found['domain']:.4f}", gains[0], f"{found['general']:.4f}", gains[1])
        )
    headers = ("share of the domain", "domain", "change", "general", "change")
    run.tables.append(("Bits per byte of held-out text", headers, rows))
