"""Answers of the weights as they are now, as batches to learn from.

    rollouts = Rollouts(answerer, prompts, Experience, …)
    for step in train(model, loss, rollouts, settings, folder=…):
        if rollouts.fresh: run.log(step.number, **rollouts.statistics)

A round: some prompts are drawn, each is answered several times by the engine with the weights that
are being trained, `experience` judges the answers and makes the tensors that the loss takes, and
these go out in minibatches, `epochs` times in a new order each time. Then the next round begins.
Training takes a batch when a step begins, so a round is made with the weights behind the last one.

The state holds the round that is under way, so a run that was stopped goes on to the bit.

R answers of a round, T tokens.
"""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from trivium.data import IGNORE
from trivium.data.order import drawn
from trivium.errors import UsageError
from trivium.language.batching import Batcher, Stream
from trivium.language.generation import Request, Token
from trivium.language.pretrained import LanguageModel
from trivium.language.rows_step import RowsEngine
from trivium.language.sampling import Sampling

Statistics = dict[str, float]


@dataclass(frozen=True)
class Prompt:
    """What is asked, and what a reward needs to know about it."""

    messages: Sequence[Mapping[str, Any]]
    answer: str = ""  # that is right, if there is one
    check: str = "number"  # how to tell, of trivium.language.alignment.verifiable
    tools: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Answer:
    """ids: with the token that ended it, if one did. logprobs: as the engine saw them."""

    ids: list[int]
    text: str
    ended: bool
    logprobs: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Round:
    """R answers; those to the same prompt follow one another."""

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    answers: list[Answer]
    of_each: int  # answers to a prompt
    minibatches: list[Tensor]  # their rows, of the first time that they are learnt from


class Experience(Protocol):
    """From the answers of a round to the tensors that the loss takes, whose first dimension is R;
    and what there is to say about the round."""

    def __call__(self, round: Round) -> tuple[dict[str, Tensor], Statistics]: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: Mapping[str, Any]) -> None: ...


class Answerer:
    """Answers prompts with a model as it is at the moment.

    together: sequences that are decoded in one step
    """

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        max_tokens: int,
        temperature: float = 1.0,
        together: int = 32,
        logprobs: bool = False,
    ) -> None:
        if language_model.template is None:
            raise UsageError(
                f"{language_model.name} has no chat template, so it cannot answer: train it with "
                "the recipe sft first"
            )
        self.language_model, self.engine = language_model, RowsEngine(language_model)
        self.max_tokens, self.temperature = max_tokens, temperature
        self._together, self._logprobs = together, logprobs

    def encode(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt, up to where the answer begins."""
        of = self.language_model
        assert of.template is not None
        ids = of.template.encode(of.tokenizer, prompt.messages, prompt.tools)
        self.engine.room(ids, self.max_tokens)
        return ids

    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Answer]:
        """An answer to each prompt. What is drawn depends on the seed and the prompt."""
        model = self.language_model.model
        training = model.training
        model.eval()
        self.engine.forget()
        try:
            with Batcher(self.engine, self._together) as batcher:
                runs = [
                    batcher.run(self._request(prompt, seed))
                    for prompt, seed in zip(prompts, seeds, strict=True)
                ]
                streams = [Stream(batcher, run, None) for run in runs]
                events = [list(stream) for stream in streams]
        finally:
            model.train(training)
            self.engine.forget()
        return [
            Answer(
                ids=list(run.made),
                text="".join(event.text for event in told),
                ended=bool(run.made) and run.made[-1] in self.engine.tokenizer.stop_ids,
                logprobs=[
                    e.logprob for e in told if isinstance(e, Token) and e.logprob is not None
                ],
            )
            for run, told in zip(runs, events, strict=True)
        ]

    def _request(self, prompt: Sequence[int], seed: int) -> Request:
        return Request(
            prompt,
            Sampling(temperature=self.temperature, seed=seed),
            max_tokens=self.max_tokens,
            top_logprobs=0 if self._logprobs else None,
        )


class Rollouts:
    """Batches without end.

    asked: prompts of a round; of_each: answers to each of them
    rows: answers of a minibatch
    epochs: how often a round is learnt from
    fresh: whether the last batch was the first of its round, which `statistics` are about
    """

    def __init__(
        self,
        answerer: Callable[[Sequence[Sequence[int]], Sequence[int]], list[Answer]],
        prompts: Sequence[Prompt],
        encoded: Sequence[Sequence[int]],
        experience: Experience,
        *,
        asked: int,
        of_each: int = 1,
        rows: int,
        epochs: int = 1,
        seed: int = 0,
    ) -> None:
        if not prompts:
            raise UsageError("there is no prompt to answer")
        self._answerer, self._experience = answerer, experience
        self._prompts, self._encoded = prompts, [list(ids) for ids in encoded]
        self.asked, self.of_each, self.rows, self.epochs = asked, of_each, rows, epochs
        self._seed = seed
        self._round, self._given = 0, 0  # and minibatches that were given of it
        self._tensors: dict[str, Tensor] = {}  # of the round that is under way
        self.statistics: Statistics = {}
        self.fresh = False
        self.last: Round | None = None

    @property
    def per_round(self) -> int:
        """Minibatches of a round."""
        return self.epochs * -(-self.asked * self.of_each // self.rows)

    def state(self) -> dict[str, Any]:
        under_way = 0 < self._given < self.per_round
        return {
            "round": self._round,
            "given": self._given,
            "tensors": packed(self._tensors) if under_way else {},
            "statistics": self.statistics,
            "experience": self._experience.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self._round, self._given = state["round"], state["given"]
        self._tensors, self.statistics = unpacked(state["tensors"]), dict(state["statistics"])
        self._experience.load(state["experience"])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            if self._given >= self.per_round:
                self._round, self._given = self._round + 1, 0
            if self._given == 0:
                self._tensors = self._made()
            while self._given < self.per_round:
                epoch, number = divmod(self._given, self.per_round // self.epochs)
                self.fresh = self._given == 0
                self._given += 1
                yield minibatch(self._tensors, self._minibatches(epoch)[number])

    def _minibatches(self, epoch: int) -> list[Tensor]:
        order = drawn(self.asked * self.of_each, self._seed, self._round, epoch)
        return list(torch.split(torch.from_numpy(order), self.rows))

    def _made(self) -> dict[str, Tensor]:
        """The tensors of a new round."""
        chosen = [i for i in self._chosen() for _ in range(self.of_each)]
        numbers = np.random.PCG64([self._seed, self._round]).random_raw(len(chosen))
        seeds = [int(number >> np.uint64(1)) for number in numbers]
        ids = [self._encoded[i] for i in chosen]
        answers = self._answerer(ids, seeds)
        asked = [self._prompts[i] for i in chosen]
        made = Round(asked, ids, answers, self.of_each, self._minibatches(0))
        self.last = made
        tensors, self.statistics = self._experience(made)
        return tensors

    def _chosen(self) -> list[int]:
        """The prompts of the round: all of them once, in a drawn order, before any comes again."""
        found, count = [], len(self._prompts)
        for place in range(self._round * self.asked, (self._round + 1) * self.asked):
            turn, at = divmod(place, count)
            found.append(int(drawn(count, self._seed, turn)[at]))
        return found


def as_rows(round: Round, filler: int) -> dict[str, Tensor]:
    """ids and targets (R, T): each prompt with its answer, padded on the right; the answer's
    tokens are targets."""
    length = max(len(p) + len(a.ids) for p, a in zip(round.prompt_ids, round.answers, strict=True))
    ids = torch.full((len(round.answers), length), filler)
    targets = torch.full_like(ids, IGNORE)
    for row, (prompt, answer) in enumerate(zip(round.prompt_ids, round.answers, strict=True)):
        whole = torch.tensor([*prompt, *answer.ids])
        ids[row, : len(whole)] = whole
        targets[row, len(prompt) - 1 : len(whole) - 1] = whole[len(prompt) :]
    return {"ids": ids, "targets": targets}


def minibatch(tensors: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Some rows, without the columns that are padding in all of them."""
    columns = (tensors["targets"][rows] != IGNORE).any(0).nonzero()
    length = int(columns[-1]) + 2 if len(columns) else 1
    return {
        name: value[rows, :length] if value.dim() == 2 else value[rows]
        for name, value in tensors.items()
    }


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors as JSON."""
    return {
        name: {
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "data": base64.b64encode(value.contiguous().numpy().tobytes()).decode(),
        }
        for name, value in tensors.items()
    }


def unpacked(record: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(
            np.frombuffer(base64.b64decode(entry["data"]), entry["dtype"]).copy()
        ).reshape(entry["shape"])
        for name, entry in record.items()
    }
