"""Answers of the weights as they are, and training on them."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.data import IGNORE
from trivium.language import bpe
from trivium.language.adapters import add_lora
from trivium.language.alignment.advantages import KLController
from trivium.language.alignment.experience import GRPOExperience, PPOExperience, verified
from trivium.language.alignment.logprobs import said
from trivium.language.alignment.policy import ActorCritic, critic_of, grpo_loss, ppo_loss
from trivium.language.alignment.reference import Reference
from trivium.language.alignment.rollouts import (
    Answer,
    Answerer,
    Prompt,
    Rollouts,
    as_rows,
    packed,
    unpacked,
)
from trivium.language.alignment.verifiable import last_number, right_choice, right_text
from trivium.language.chat_template import ChatTemplate
from trivium.language.engine import Engine
from trivium.language.generation import Request
from trivium.language.pretrained import LanguageModel
from trivium.language.sampling import Sampling
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.train import TrainConfig, train

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = ["a bc abc cab 0123456789 What is the sum?"] * 20
PROMPTS = [Prompt([{"role": "user", "content": text}]) for text in ("a", "bc?", "What is it?")]


@pytest.fixture
def chat() -> Callable[..., LanguageModel]:
    tokenizer = bpe.train(TEXTS, 300)

    def make(seed: int = 0, **sizes: int) -> LanguageModel:
        torch.manual_seed(seed)
        settings = {"context": 64, "width": 16, "layers": 2, "heads": 2, "hidden": 32, **sizes}
        model = Transformer(TransformerConfig(vocab_size=tokenizer.vocab_size, **settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return LanguageModel("tiny", model, tokenizer, ChatTemplate(CHATML), "float32")

    return make


def letters(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[float]:
    """How much of an answer is made of the letters a to c."""
    return [sum(c in "abc" for c in a.text) / max(len(a.text), 1) for a in answers]


# -- the engine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=3)])
def test_together_the_answers_are_those_of_each_alone(
    chat: Callable[..., LanguageModel], groups: int, sampling: Sampling
) -> None:
    of = chat(groups=groups)
    answerer = Answerer(of, max_tokens=12, temperature=sampling.temperature, logprobs=True)
    prompts = [answerer.encode(prompt) for prompt in PROMPTS] * 2
    seeds = [sampling.seed or 0] * 6
    together = answerer(prompts, seeds)
    alone = Engine(of)
    for prompt, answer in zip(prompts, together, strict=True):
        events = list(alone.generate(Request(prompt, sampling, max_tokens=12, top_logprobs=0)))
        assert answer.text == "".join(event.text for event in events)
        logprobs = [e.logprob for e in events[:-1]]  # type: ignore[union-attr]
        assert answer.logprobs == pytest.approx(logprobs, abs=1e-5)


def test_the_engine_and_training_agree_on_probabilities(
    chat: Callable[..., LanguageModel],
) -> None:
    """Within 1e-5, in float32: what the engine says while it draws, token by token from a cache,
    and what a forward pass over whole padded rows says."""
    of = chat()
    answerer = Answerer(of, max_tokens=20, logprobs=True)
    prompts = [answerer.encode(prompt) for prompt in PROMPTS]
    answers = answerer(prompts, [1, 2, 3])
    batch = as_rows(type("R", (), {"prompt_ids": prompts, "answers": answers}), 0)  # type: ignore[arg-type]
    found = said(of.model, batch)
    for row, answer in enumerate(answers):
        trained = found.logprobs[found.rows == row].tolist()
        assert len(trained) == len(answer.ids)
        assert answer.logprobs == pytest.approx(trained[: len(answer.logprobs)], abs=1e-5)


def test_weights_that_change_are_used_at_once(chat: Callable[..., LanguageModel]) -> None:
    of = chat()
    answerer = Answerer(of, max_tokens=12)
    prompts = [answerer.encode(prompt) for prompt in PROMPTS]
    first = answerer(prompts, [1, 2, 3])
    assert answerer(prompts, [1, 2, 3]) == first
    fresh = chat(seed=5)
    of.model.load_state_dict(fresh.model.state_dict())
    assert answerer(prompts, [1, 2, 3]) == Answerer(fresh, max_tokens=12)(prompts, [1, 2, 3])


# -- rounds ---------------------------------------------------------------------------------------


class Counting:
    """An experience that numbers its answers."""

    def __call__(self, round: Any) -> Any:
        rows = as_rows(round, 0)
        return rows | {"number": torch.arange(len(round.answers))}, {"answers": 6}

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Any) -> None:
        pass


def echo(prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Answer]:
    """An answer as long as its prompt, of a token that its seed draws."""
    return [
        Answer([seed % 50 + 1] * len(prompt), "", True)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def counted(**more: Any) -> Rollouts:
    prompts = [Prompt([])] * 5
    encoded = [[100 + i] * (i + 1) for i in range(5)]
    settings = {"asked": 3, "of_each": 2, "rows": 4, "epochs": 2, **more}
    return Rollouts(echo, prompts, encoded, Counting(), **settings)


def test_every_answer_is_given_once_in_each_epoch() -> None:
    rollouts = counted()
    assert rollouts.per_round == 4
    batches = list(itertools.islice(rollouts, 8))
    for start in (0, 2, 4, 6):
        numbers = torch.cat([batch["number"] for batch in batches[start : start + 2]])
        assert sorted(numbers.tolist()) == list(range(6))
    for batch in batches:  # no column is padding in all rows, and every answer is whole
        assert (batch["ids"] != 0).any(0).all()
        assert ((batch["targets"] != IGNORE).sum(1) * 2 == (batch["ids"] != 0).sum(1)).all()
    asked = [set(batch["ids"][:, 0].tolist()) for batch in batches[:2]]
    then = [set(batch["ids"][:, 0].tolist()) for batch in batches[4:6]]
    assert len(asked[0] | asked[1] | then[0] | then[1]) == 5  # all, before any comes again


def test_a_state_goes_on_anywhere() -> None:
    whole = list(itertools.islice(counted(), 10))
    for stop in range(10):
        first = counted()
        list(itertools.islice(first, stop))
        second = counted()
        second.load(first.state())
        for ours, wanted in zip(itertools.islice(second, 10 - stop), whole[stop:], strict=True):
            assert ours.keys() == wanted.keys()
            assert all(torch.equal(ours[name], wanted[name]) for name in ours)
        assert second.statistics == {"answers": 6}


def test_tensors_as_json() -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.zeros(0, 2)}
    back = unpacked(packed(tensors))
    assert all(torch.equal(back[n], t) and back[n].dtype == t.dtype for n, t in tensors.items())


# -- training -------------------------------------------------------------------------------------


def setup(
    of: LanguageModel, kind: str, *, lora: bool = True, **more: Any
) -> tuple[Any, Any, Rollouts]:
    """Model, loss and rollouts."""
    torch.manual_seed(1)
    if lora:
        add_lora(of.model, 8, 32)
    reference, answerer = Reference(of.model), Answerer(of, max_tokens=8)
    settings = {"asked": 2, "of_each": 4, "rows": 4, "epochs": 2, **more}
    encoded = [answerer.encode(prompt) for prompt in PROMPTS]
    if kind == "grpo":
        experience: Any = GRPOExperience(of.model, reference, letters, filler=0)
        model, loss = of.model, partial(grpo_loss, beta=0.02)
    else:
        model, loss = ActorCritic(of.model, critic_of(of.model)), ppo_loss
        controller = KLController(0.02, target=4.0, horizon=500)
        experience = PPOExperience(model, reference, letters, controller, filler=0)
    return model, loss, Rollouts(answerer, PROMPTS, encoded, experience, **settings)


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_the_first_ratio_of_a_round_is_exactly_one(
    chat: Callable[..., LanguageModel], kind: str
) -> None:
    model, loss, rollouts = setup(chat(), kind)
    drifts = []
    settings = TrainConfig(steps=8, learning_rate=1e-2)
    for step in train(model, loss, rollouts, settings):
        drifts.append((rollouts.fresh, step.metrics["drift"]))
    assert [fresh for fresh, _ in drifts] == [True, False, False, False] * 2
    assert drifts[0][1] == drifts[4][1] == 0  # to the bit
    assert all(drift > 0 for fresh, drift in drifts if not fresh)


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_stopped_run_goes_on_to_the_bit(
    chat: Callable[..., LanguageModel], kind: str, tmp_path: Path
) -> None:
    """Stopped in the middle of a round."""

    def run(folder: Path, steps: int, of_steps: int) -> dict[str, Tensor]:
        model, loss, rollouts = setup(chat(), kind)
        settings = TrainConfig(steps=of_steps, learning_rate=1e-2)
        for step in train(model, loss, rollouts, settings, folder=folder):
            if step.number == steps:
                break
        return model.state_dict()

    whole = run(tmp_path / "whole", 7, 7)
    run(tmp_path / "parts", 3, 7)
    parts = run(tmp_path / "parts", 7, 7)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_the_reward_rises_and_the_divergence_stays_bounded(
    chat: Callable[..., LanguageModel], kind: str
) -> None:
    of = chat(width=32, hidden=64)
    of.model.init_weights()
    of_each = 1 if kind == "ppo" else 8
    more = {"asked": 32 // of_each, "of_each": of_each, "rows": 16, "epochs": 2}
    model, loss, rollouts = setup(of, kind, lora=False, **more)
    rewards, divergences = [], []
    settings = TrainConfig(steps=60, learning_rate=1e-2, schedule="constant", weight_decay=0.0)
    for _ in train(model, loss, rollouts, settings):
        if rollouts.fresh:
            rewards.append(rollouts.statistics["reward"])
            divergences.append(rollouts.statistics["kl"])
    assert divergences[0] == pytest.approx(0, abs=1e-5)
    assert sum(rewards[:3]) / 3 < 0.1
    assert sum(rewards[-3:]) / 3 > 0.5
    assert 1 < max(divergences) < 40


# -- rewards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 = 5", 5),
        ("so it is **1,234,567**.", 1234567),
        ("minus -7", -7),
        ("10-5", 5),
        ("−3,5 or 0.25", 0.25),
        ("1/4", 0.25),
        ("it is 5.", 5),
        ("答案是42。", None),  # a word to Python; the answer has to set it apart
        ("答案是 42。", 42),
        ("3km", None),
        ("none", None),
        ("1/0", None),
    ],
)
def test_the_last_number(text: str, value: float | None) -> None:
    assert last_number(text) == value


def test_other_checks() -> None:
    assert right_text("  Monday. ", "monday") and not right_text("", "")
    assert right_text("ＡＢＣ！", "abc")
    assert right_choice("The answer is (b).", "B") and not right_choice("Ab", "a")


def test_an_answer_without_end_is_not_right() -> None:
    prompts = [Prompt([], "5")] * 3
    answers = [Answer([], "it is 5", True), Answer([], "it is 5", False), Answer([], "6", True)]
    assert verified(prompts, answers) == [1, 0, 0]
