"""The run of a policy that learns from rewards, which `ppo` and `grpo` share.

Each round the model answers prompts as it is at that moment, the answers are rewarded (by a reward
model, or by a program that knows what is right), and some steps of training follow.
"""

import contextlib
import statistics
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from trivium import hub, models
from trivium.errors import UsageError
from trivium.language.alignment.experience import Reward, verified
from trivium.language.alignment.reference import Reference
from trivium.language.alignment.reward import RewardModel
from trivium.language.alignment.rollouts import Answer, Answerer, Experience, Prompt, Rollouts
from trivium.language.chat_template import ChatTemplate
from trivium.language.rendering import render
from trivium.language.tokenizer import Tokenizer
from trivium.recipes import assistant as shared
from trivium.recipes import exercises, metrics
from trivium.recipes import prompts as files
from trivium.recipes.assistant import Assistant, Score
from trivium.recipes.config import RecipeConfig
from trivium.recipes.run import Run
from trivium.train import Loss, Step, TrainConfig, train, world_size

MADE = 2000  # exercises, where no data are given
ROUNDS = 5  # first and last ones that are told of
JUDGED = 16  # answers that a reward model reads at a time


@dataclass(frozen=True)
class PolicyConfig(RecipeConfig):
    data: str = ""  # prompts, with answers where a program judges; "": sums made on the spot
    model: str = ""  # a name or folder; "": the default model if it is here, else tiny
    reward: str = ""  # the folder of a reward model; "": 1 for a right answer, else 0
    unended: float = 1.0  # is taken off a reward model's reward for an answer that does not end
    rank: int = 16  # of the adapter (LoRA); 0: all weights, and a copy of them as the reference
    rounds: int = 40  # of answering and learning
    prompts: int = 8  # that are answered in a round
    answers: int = 8  # to each of them
    minibatch: int = 64  # answers of a step
    rows: int = 16  # answers that are learnt from at a time
    epochs: int = 1  # how often a round is learnt from
    max_tokens: int = 48  # of an answer
    temperature: float = 1.0  # that answers are drawn with
    clip: float = 0.2  # how far a token's ratio may move from 1 for gain
    learning_rate: float = 0.0  # 0: 1e-4 for an adapter, 1e-6 for all weights, 2e-4 for tiny
    held_out: int = 200  # prompts, answered before, meanwhile and afterwards
    evaluate_every: int = 0  # rounds; 0: four times
    largest: int = 0  # number in the sums made on the spot; 0: 99, or 9 for tiny
    base_steps: int = 0  # of the sft that a tiny model begins with; 0: as many as sft takes


@dataclass(frozen=True)
class Learner:
    """What a recipe makes of a policy: what is trained, its loss, and what becomes of answers."""

    model: nn.Module
    loss: Callable[[Any, Any], Loss]
    experience: Experience


Make = Callable[[Assistant, Reference, Reward], Learner]


def run_policy(
    config: PolicyConfig, make: Make, rates: tuple[float, float, float]
) -> dict[str, Any]:
    """Run a recipe to its end. rates: see `assistant.plan_of`."""
    run = Run.start(config)
    if run.results is not None:
        return run.results
    _check(config)
    assistant = shared.open_assistant(
        run, config.model, lambda: shared.tiny_trained(run, config.seed, config.base_steps)
    )
    answerer = Answerer(
        assistant.language_model, max_tokens=config.max_tokens, temperature=config.temperature
    )
    corpus = _prompts(config, assistant)
    run.data(corpus)
    asked, ids = files.encoded(corpus, answerer.encode)
    held = min(config.held_out, len(asked) // 2)
    if held < 1:
        raise shared.too_few(corpus.name)
    reward = _reward(run, config, asked)
    adapted = shared.adapt(assistant, config.rank)
    learner = make(assistant, Reference(assistant.model), reward)
    learner.model.to(run.device)
    rollouts = Rollouts(
        answerer,
        asked[held:],
        ids[held:],
        learner.experience,
        asked=config.prompts,
        of_each=config.answers,
        rows=config.rows,
        epochs=config.epochs,
        seed=config.seed,
    )
    plan = _plan(run, assistant, config, rollouts, rates)
    per_round = plan.steps // config.rounds
    if config.dry_run:
        return run.estimate(learner.model, learner.loss, rollouts, plan)
    judge = Judge(assistant, asked[:held], ids[:held], reward, config)
    before = judge()
    run.evaluated(0, **before.numbers)
    every = per_round * (config.evaluate_every or max(1, config.rounds // 4))
    after = before
    steps = train(learner.model, learner.loss, rollouts, plan, folder=run.folder)
    for step in run.steps(_in_tokens(steps, rollouts, config.minibatch), plan):
        if (step.number - 1) % per_round == 0:  # the first of a round
            run.log(step.number, **rollouts.statistics)
        if step.number % every == 0 or step.last:
            after = judge()
            run.evaluated(step.number, **after.numbers)
            run.sample(step.number, after.shown)
    shared.save(run, assistant, adapted)
    return run.finish(judge.results(before, after) | _rise(run), limits=LIMITS)


LIMITS = (
    "It does what was rewarded, and found the ways to it by itself: look at what it writes, not at "
    "the reward alone. It was not made safe."
)


def _in_tokens(steps: Iterator[Step], rollouts: Rollouts, answers: int) -> Iterator[Step]:
    """The steps, whose weight is that of tokens, whatever the loss is an average of."""
    with contextlib.closing(cast(Generator[Step, None, None], steps)):
        for step in steps:
            yield replace(step, weight=round(rollouts.statistics["answer_tokens"] * answers))


def _rise(run: Run) -> dict[str, Any]:
    """The mean reward, and the divergence, of drawn answers in the first and the last rounds."""
    found = metrics.series(metrics.read(run.folder / "metrics.jsonl"))
    rewards = [value for _, value in found.get("reward", [])]
    divergences = [value for _, value in found.get("kl", [])]
    few = min(ROUNDS, max(1, len(rewards) // 2))
    if not rewards:
        return {}
    return {
        "reward of drawn answers, first rounds": statistics.fmean(rewards[:few]),
        "reward of drawn answers, last rounds": statistics.fmean(rewards[-few:]),
        "divergence of an answer (nats), last rounds": statistics.fmean(divergences[-few:]),
    }


def _check(config: PolicyConfig) -> None:
    if world_size() > 1:
        raise UsageError("this recipe is of one process: start it without torchrun")
    count = config.prompts * config.answers
    for name in ("rounds", "prompts", "answers", "minibatch", "rows", "epochs", "max_tokens"):
        if getattr(config, name) < 1:
            raise UsageError(f"{name} is at least 1, not {getattr(config, name)}")
    if count % config.minibatch or config.minibatch % config.rows:
        raise UsageError(
            f"prompts × answers ({count}) must be a multiple of minibatch ({config.minibatch}), "
            f"and that one of rows ({config.rows})"
        )


def _plan(
    run: Run,
    assistant: Assistant,
    config: PolicyConfig,
    rollouts: Rollouts,
    rates: tuple[float, float, float],
) -> TrainConfig:
    accumulate = config.minibatch // config.rows
    per_round = rollouts.per_round // accumulate
    return shared.plan_of(
        run,
        assistant,
        config,
        rates=rates,
        steps=config.rounds * per_round,
        accumulate=accumulate,
        warmup=per_round,
        schedule="linear",
        save_every=per_round * max(1, config.rounds // 20),
    )


def _prompts(config: PolicyConfig, assistant: Assistant) -> files.Prompts:
    if config.data:
        return files.prompts(config.data)
    largest = config.largest or (shared.LARGEST if assistant.tiny else 99)
    items = exercises.exercises(MADE, config.seed + 2, largest=largest, kinds=("sum", "difference"))
    return files.made(items, f"sums and differences up to {largest}, made on the spot")


# -- rewards --------------------------------------------------------------------------------------


def _reward(run: Run, config: PolicyConfig, asked: Sequence[Prompt]) -> Reward:
    if not config.reward:
        if unknown := sum(not prompt.answer for prompt in asked):
            raise UsageError(
                f"{unknown:,} of {len(asked):,} prompts have no 'answer' that a program could "
                "compare with: give them one, or a reward model with reward="
            )
        return verified
    folder = hub.find(config.reward)
    model = models.load_checkpoint(folder)
    if not isinstance(model, RewardModel):
        raise UsageError(f"{folder} is no reward model: `trivium train reward` makes one")
    template = ChatTemplate.from_folder(folder)
    if template is None:
        raise UsageError(f"{folder} has no chat template")
    model.to(run.device).eval().requires_grad_(False)
    return ModelReward(model, Tokenizer.from_folder(folder), template, config.unended)


class ModelReward:
    """What a reward model says of answers."""

    def __init__(
        self, model: RewardModel, tokenizer: Tokenizer, template: ChatTemplate, unended: float
    ) -> None:
        self._model, self._tokenizer, self._template = model, tokenizer, template
        self._unended = unended

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[float]:
        rows = [self._ids(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        device = next(self._model.parameters()).device
        found: list[float] = []
        for start in range(0, len(rows), JUDGED):
            some = rows[start : start + JUDGED]
            length = max(map(len, some))
            ids = torch.tensor([row + [0] * (length - len(row)) for row in some])
            ends = torch.tensor([len(row) - 1 for row in some])
            found += self._model(ids.to(device), ends.to(device)).tolist()
        return [
            reward - (0.0 if answer.ended else self._unended)
            for reward, answer in zip(found, answers, strict=True)
        ]

    def _ids(self, prompt: Prompt, answer: Answer) -> list[int]:
        messages = [*prompt.messages, {"role": "assistant", "content": answer.text}]
        ids, _ = render(self._tokenizer, self._template, messages, prompt.tools)
        return ids[-self._model.config.context :]


# -- held-out prompts -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """The mean reward of the best answers, its standard error, and how many were right."""

    reward: float
    error: float
    right: Score | None
    shown: str

    @property
    def numbers(self) -> dict[str, float]:
        if self.right is not None:
            return {"held_out_right": self.right.share}
        return {"held_out_reward": self.reward}


class Judge:
    """Answers held-out prompts greedily and rewards that."""

    def __init__(
        self,
        assistant: Assistant,
        prompts: Sequence[Prompt],
        ids: Sequence[Sequence[int]],
        reward: Reward,
        config: PolicyConfig,
    ) -> None:
        of = assistant.language_model
        self._answerer = Answerer(of, max_tokens=config.max_tokens, temperature=0.0)
        self._prompts, self._ids, self._reward = prompts, ids, reward

    def __call__(self) -> Judged:
        answers: list[Answer] = []
        for start in range(0, len(self._ids), shared.GREEDY):
            some = self._ids[start : start + shared.GREEDY]
            answers += self._answerer(some, [0] * len(some))
        rewards = list(self._reward(self._prompts, answers))
        lines = [
            f"{prompt.messages[-1]['content']}\n    {answer.text}  [{reward:.2f}]"
            for prompt, answer, reward in zip(self._prompts, answers, rewards, strict=True)
        ]
        score = None
        if all(prompt.answer for prompt in self._prompts):
            right = int(sum(verified(self._prompts, answers)))
            score = Score(right, len(answers), "")
        spread = statistics.stdev(rewards) if len(rewards) > 1 else 0.0
        error = spread / len(rewards) ** 0.5
        return Judged(statistics.fmean(rewards), error, score, "\n".join(lines[:8]))

    def results(self, before: Judged, after: Judged) -> dict[str, Any]:
        found: dict[str, Any] = {
            "held-out reward before": f"{before.reward:.3f} ± {1.96 * before.error:.3f}",
            "held-out reward": f"{after.reward:.3f} ± {1.96 * after.error:.3f}",
        }
        if before.right is not None and after.right is not None:
            found = {} if self._reward is verified else found
            found |= {"right answers before": str(before.right)}
            found |= {"right answers": str(after.right)}
        return found | {"of held-out prompts": len(self._prompts)}
