"""Teach a language model to answer: supervised fine-tuning on conversations.

Only what the assistant says carries loss, each turn through the token that ends it (Ouyang et al.
2022, section 3.5). Several conversations share a row and do not see one another. The model's own
chat template spells them, and stays with the weights.
"""

import math
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from trivium.data import ConversationBatches, Conversations, conversations
from trivium.language.alignment.rollouts import Answerer, Prompt
from trivium.language.losses import masked_token
from trivium.recipes import assistant as shared
from trivium.recipes import exercises
from trivium.recipes.assistant import Assistant, Score
from trivium.recipes.config import RecipeConfig
from trivium.recipes.hardware import flops_per_token
from trivium.recipes.language_model import micro_batch
from trivium.recipes.run import Run
from trivium.train import TrainConfig, rank, restore_best, train, world_size

MADE = 4000  # exercises, where no data are given
ASKED = 200  # held-out ones that are answered
SEEN = 200  # conversations by which the tokens of all are reckoned
HELD_ROWS = 64
BATCH, TINY_BATCH, TINY_STEPS = 4096, 1024, 400


@dataclass(frozen=True)
class Config(RecipeConfig):
    data: str = ""  # conversations: a file, folder, glob or hf:NAME; "": exercises made on the spot
    model: str = ""  # a name or folder; "": the default model if it is here, else tiny
    rank: int = 16  # of the adapter (LoRA); 0: all weights are trained
    steps: int = 0  # 0: `epochs` rounds of the data, or 400 for tiny
    epochs: float = 1.0  # rounds, if `steps` is 0
    context: int = 0  # tokens of a row; 0: 1024, or what the model has if that is less
    batch: int = 0  # tokens of a step; 0: 4096, or 1024 for tiny
    learning_rate: float = 0.0  # 0: 5e-4 for an adapter, 2e-5 for all weights, 3e-3 for tiny
    too_long: Literal["error", "truncate", "drop"] = "error"  # conversations longer than a row
    held_out: float = 0.05  # of the conversations
    evaluate_every: int = 0  # steps; 0: ten times
    patience: int = 0  # evaluations in a row without gain that end the run; 0: it runs to its end
    checkpointing: bool = False  # less memory, a third more time
    prompt: str = "What is 7 + 5?"  # of the samples


def main(config: Config) -> dict[str, Any]:
    run = Run.start(config)
    if run.results is not None:
        return run.results
    assistant = shared.open_assistant(
        run, config.model, lambda: shared.tiny(config.seed), template=False
    )
    largest = shared.LARGEST if assistant.tiny else 99
    questions = exercises.exercises(ASKED, config.seed + 1, largest=largest)
    train_part, held_part = _data(config, largest).split(config.held_out)
    run.data(train_part)
    length = min(config.context or 1024, assistant.model.config.context)
    batches, held = (
        _batches(part, assistant, config, length, run.device, held=part is held_part)
        for part in (train_part, held_part)
    )
    held_rows = list(islice(held, max(1, HELD_ROWS // held.rows)))
    if not held_rows:
        raise shared.too_few(held_part.name, f"that fits a row of {length} tokens (context=)")
    plan = _plan(run, assistant, config, train_part, length)
    size = batches.rows * plan.accumulate * world_size() * length
    model = assistant.model
    cost: dict[str, Any] = {
        "tokens": size,
        "flops_per_token": flops_per_token(model, length=length),
    }
    adapted = shared.adapt(assistant, config.rank)
    if config.dry_run:
        return run.estimate(model, masked_token, batches, plan, **cost)
    before = shared.mean_loss(model, masked_token, held_rows)["loss"]
    first = None if config.data else shared.answered(assistant, exercises.prompts(questions))
    run.evaluated(0, held_out_loss=before, **_said(first))
    every = config.evaluate_every or max(1, plan.steps // 10)
    for step in run.steps(
        train(model, masked_token, batches, plan, folder=run.folder), plan, **cost
    ):
        if step.number % every == 0 or step.last:
            loss = shared.mean_loss(model, masked_token, held_rows)["loss"]
            run.evaluated(step.number, held_out_loss=loss)
            run.sample(step.number, _talk(assistant, config.prompt))
            if step.judge(loss) >= config.patience > 0:
                break
    best = restore_best(model, run.folder)
    shared.save(run, assistant, adapted)
    after = shared.mean_loss(model, masked_token, held_rows)["loss"]
    results: dict[str, Any] = {"held-out loss before": before, "held-out loss": after}
    if first is not None:
        last = shared.answered(assistant, exercises.prompts(questions))
        run.sample(plan.steps, last.shown)
        results |= {"right answers before": str(first), "right answers": str(last)}
    dropped = {"conversations left out": batches.dropped, "cut": batches.truncated}
    results |= {name: count for name, count in dropped.items() if count}
    return run.finish(results | {"best step": best}, limits=LIMITS)


LIMITS = (
    "It answers in the way of the conversations that it learnt from, and knows no more than the "
    "model it was made from. It was not made safe."
)


def _data(config: Config, largest: int) -> Conversations:
    if config.data:
        return conversations(config.data)
    made = exercises.exercises(MADE, config.seed, largest=largest)
    name = f"exercises made on the spot, numbers up to {largest}"
    return conversations(exercises.conversations(made), name=name)


def _batches(
    part: Conversations,
    assistant: Assistant,
    config: Config,
    length: int,
    device: Any,
    *,
    held: bool,
) -> ConversationBatches:
    """Of the training part without end, of the other once, the same on all ranks."""
    rows, _ = micro_batch(_batch(config, assistant), length, device)
    more: dict[str, Any] = {"seed": None, "epochs": 1, "ahead": 0} if held else {}
    if not held:
        more = {"seed": config.seed, "rank": rank(), "world": world_size()}
    return ConversationBatches(
        part,
        assistant.render,
        rows=rows,
        length=length,
        filler=assistant.filler,
        too_long="drop" if held else config.too_long,
        **more,
    )


def _plan(
    run: Run, assistant: Assistant, config: Config, part: Conversations, length: int
) -> TrainConfig:
    batch = _batch(config, assistant)
    _, accumulate = micro_batch(batch, length, run.device)
    steps = config.steps or TINY_STEPS
    if not config.steps and not assistant.tiny:
        steps = max(10, math.ceil(config.epochs * _tokens(part, assistant) / batch))
    every = config.evaluate_every or max(1, steps // 10)
    return shared.plan_of(
        run,
        assistant,
        config,
        steps=steps,
        accumulate=accumulate,
        warmup=max(1, steps // 20),
        checkpointing=config.checkpointing,
        save_every=every,
    )


def _batch(config: Config, assistant: Assistant) -> int:
    return config.batch or (TINY_BATCH if assistant.tiny else BATCH)


def _tokens(part: Conversations, assistant: Assistant) -> int:
    """Of the whole part, about: by the first conversations, and the bytes of their words."""
    first = list(islice(part, SEEN))
    tokens = sum(len(assistant.render(c.messages, c.tools)[0]) for c in first)
    size = sum(len(str(c.messages).encode()) for c in first)
    return max(1, round(part.bytes * part.share * tokens / size))


def _said(score: Score | None) -> dict[str, float]:
    return {} if score is None else {"right_answers": score.share}


def _talk(assistant: Assistant, prompt: str) -> str:
    answerer = Answerer(assistant.language_model, max_tokens=64, temperature=0.0)
    asked = Prompt([{"role": "user", "content": prompt}])
    (answer,) = answerer([answerer.encode(asked)], [0])
    return f"{prompt}\n    {answer.text}"
