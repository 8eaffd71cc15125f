"""Train a reward model on rankings: what people prefer becomes a number.

    −log σ(r_better − r_worse)      (Bradley–Terry; Ouyang et al. 2022, eq. 1)

of all pairs of replies to a prompt, or the probability of its whole ranking (Plackett–Luce). The
rankings come from a file (that of `trivium rank`, too). Judged on held-out pairs: how often the
better reply has the higher reward, and whether σ of the difference is how often that is so.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from trivium.data import IGNORE
from trivium.intervals import wilson
from trivium.language.alignment.reward import (
    Calibration,
    RewardModel,
    calibration,
    margins_of,
    reward_loss,
)
from trivium.nn.lora import merge
from trivium.recipes import assistant as shared
from trivium.recipes import ranked
from trivium.recipes.chart import Chart
from trivium.recipes.config import RecipeConfig
from trivium.recipes.run import Run
from trivium.train import restore_best, train


@dataclass(frozen=True)
class Config(RecipeConfig):
    data: str = ""  # rankings: a file, folder, glob or hf:NAME; "": made on the spot
    model: str = ""  # a name or folder; "": the default model if it is here, else tiny
    ranking: Literal["pairs", "list"] = "pairs"  # all pairs, or the ranking as a whole
    rank: int = 16  # of the adapter (LoRA), which ends up in the weights; 0: all weights
    steps: int = 200  # of training
    batch: int = 16  # prompts of a step
    rows: int = 8  # prompts at a time
    context: int = 0  # tokens of a reply with its prompt; 0: 1024, or what the model has
    learning_rate: float = 0.0  # 0: 5e-4 for an adapter, 2e-5 for all weights, 3e-3 for tiny
    too_long: Literal["error", "truncate", "drop"] = "error"  # replies longer than that
    held_out: float = 0.1  # of the prompts
    evaluate_every: int = 0  # steps; 0: ten times
    base_steps: int = 0  # of the sft that a tiny model begins with; 0: as many as sft takes


def main(config: Config) -> dict[str, Any]:
    run = Run.start(config)
    if run.results is not None:
        return run.results
    assistant = shared.open_assistant(
        run, config.model, lambda: shared.tiny_trained(run, config.seed, config.base_steps)
    )
    train_part, held_part = ranked.open_preferences(
        run, config.data, assistant, config.seed, config.held_out
    )
    rows, accumulate = ranked.micro(config.batch, config.rows)
    batches = ranked.ranked_batches(train_part, assistant, config, rows=rows, seed=config.seed)
    held = ranked.held_batches(held_part, assistant, config, rows=rows)
    if not held:
        raise shared.too_few(held_part.name)
    adapted = shared.adapt(assistant, config.rank)
    torch.manual_seed(config.seed)
    model = RewardModel.of(assistant.model).to(run.device)
    every = config.evaluate_every or max(1, config.steps // 10)
    plan = shared.plan_of(
        run,
        assistant,
        config,
        steps=config.steps,
        accumulate=accumulate,
        warmup=max(1, config.steps // 20),
        save_every=every,
    )
    loss = partial(reward_loss, ranking=config.ranking)
    if config.dry_run:
        return run.estimate(model, loss, batches, plan)
    steps = train(model, loss, batches, plan, folder=run.folder)
    for step in run.steps(steps, plan, tokens=ranked.tokens_of(held, config.batch)):
        if step.number % every == 0 or step.last:
            found = shared.mean_loss(model, loss, held)
            run.evaluated(
                step.number, held_out_loss=found["loss"], held_out_accuracy=found["accuracy"]
            )
            step.judge(found["loss"])
    best = restore_best(model, run.folder)
    margins = torch.cat([margins_of(model, on(batch, run.device)).cpu() for batch in held])
    judged = calibration(margins)
    _draw(run, judged)
    if adapted:
        merge(model)
    centre = _centre(model, held, run.device)
    run.save_model(
        model,
        "reward",
        replace(model.config, centre=centre),
        assistant.tokenizer,
        assistant.template,
    )
    right, count = int((margins > 0).sum()), len(margins)
    low, high = wilson(right, count)
    return run.finish(
        {
            "held-out pairs in the right order": right / count,
            "95 % interval": f"{low:.1%} – {high:.1%} ({right} of {count})",
            "calibration error": judged.error,
            "best step": best,
        },
        limits="It rates replies like those it was shown, by the taste of who ranked them.",
    )


def on(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in batch.items()}


@torch.no_grad()
def _centre(model: RewardModel, held: list[Any], device: torch.device) -> float:
    """The mean reward of held-out replies."""
    found = [model(on(b, device)["ids"], on(b, device)["ends"]).cpu() for b in held]
    real = [(batch["targets"] != IGNORE).any(1) for batch in held]
    return float(torch.cat([r[keep] for r, keep in zip(found, real, strict=True)]).mean())


def _draw(run: Run, judged: Calibration) -> None:
    points = [(said, was) for said, was, _ in judged.bins]
    run.charts.append(
        Chart(
            "Is it right as often as it says?",
            "σ(difference of rewards)",
            "share in the right order",
            {"held-out pairs": points, "right as often as it says": [(0.5, 0.5), (1.0, 1.0)]},
            points=("held-out pairs",),
        )
    )
    rows = []
    for said, was, count in judged.bins:
        low, high = wilson(round(was * count), count)
        rows.append((f"{said:.1%}", f"{was:.1%} ({low:.1%} – {high:.1%})", f"{count}"))
    headers = ("it says", "it is right", "pairs")
    run.tables.append(("Calibration on held-out pairs", headers, rows))
