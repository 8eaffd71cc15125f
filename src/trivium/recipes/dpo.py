"""Learn from rankings without a reward model: direct preference optimisation.

    −log σ(β log π(better)/π_ref(better) − β log π(worse)/π_ref(worse))     (Rafailov et al. 2023)

The reference is the model as it was. With an adapter it is the model without it, so that no second
copy of the weights is in memory. objective=ipo (Azar et al. 2023) stops when a pair is far enough
apart.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from trivium.language.alignment.dpo import dpo_loss, ipo_loss
from trivium.language.alignment.reference import Reference
from trivium.recipes import assistant as shared
from trivium.recipes import exercises, ranked
from trivium.recipes.config import RecipeConfig
from trivium.recipes.run import Run
from trivium.train import restore_best, train

ASKED = 200  # exercises that are answered


@dataclass(frozen=True)
class Config(RecipeConfig):
    data: str = ""  # rankings: a file, folder, glob or hf:NAME; "": made on the spot
    model: str = ""  # a name or folder; "": the default model if it is here, else tiny
    objective: Literal["dpo", "ipo"] = "dpo"  # which loss
    beta: float = 0.1  # the larger, the nearer it stays to the reference
    smoothing: float = 0.0  # share of the rankings that are taken to be the wrong way round (dpo)
    rank: int = 16  # of the adapter (LoRA); 0: all weights, and a copy of them as the reference
    steps: int = 100  # of training
    batch: int = 16  # prompts of a step
    rows: int = 8  # prompts at a time
    context: int = 0  # tokens of a reply with its prompt; 0: 1024, or what the model has
    learning_rate: float = 0.0  # 0: 1e-4 for an adapter, 1e-6 for all weights, 3e-4 for tiny
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
    model = assistant.model
    adapted = shared.adapt(assistant, config.rank)
    reference = Reference(model)
    every = config.evaluate_every or max(1, config.steps // 10)
    plan = shared.plan_of(
        run,
        assistant,
        config,
        rates=(1e-4, 1e-6, 3e-4),
        steps=config.steps,
        accumulate=accumulate,
        warmup=max(1, config.steps // 10),
        save_every=every,
    )
    if config.objective == "dpo":
        loss = partial(dpo_loss, reference=reference, beta=config.beta, smoothing=config.smoothing)
    else:
        loss = partial(ipo_loss, reference=reference, beta=config.beta)
    if config.dry_run:
        return run.estimate(model, loss, batches, plan)
    largest = shared.LARGEST if assistant.tiny else 99
    questions = exercises.prompts(exercises.exercises(ASKED, config.seed + 1, largest=largest))
    first = None if config.data else shared.answered(assistant, questions)
    steps = train(model, loss, batches, plan, folder=run.folder)
    for step in run.steps(steps, plan, tokens=ranked.tokens_of(held, config.batch)):
        if step.number % every == 0 or step.last:
            found = shared.mean_loss(model, loss, held)
            run.evaluated(step.number, **{f"held_out_{name}": found[name] for name in SHOWN})
            step.judge(found["loss"])
    best = restore_best(model, run.folder)
    found = shared.mean_loss(model, loss, held)
    shared.save(run, assistant, adapted)
    results: dict[str, Any] = {
        "held-out rankings in the right order": found["accuracy"],
        "held-out margin": found["margin"],
        "held-out loss": found["loss"],
        "reward of the better": found["chosen_reward"],
        "reward of the worse": found["rejected_reward"],
    }
    if first is not None:
        last = shared.answered(assistant, questions)
        run.sample(config.steps, last.shown)
        results |= {"right answers before": str(first), "right answers": str(last)}
    return run.finish(results | {"best step": best}, limits=LIMITS)


SHOWN = ("loss", "accuracy", "margin")
LIMITS = "It leans to what was preferred in the rankings, and was not made safe."
