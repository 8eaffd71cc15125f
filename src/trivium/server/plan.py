"""A request for text that was read and found to be possible, and its answer as it is made."""

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trivium.language.generation import End, Run, Token
from trivium.llmos.messages import Finish, Usage
from trivium.server.metrics import Metrics
from trivium.server.schema import Generation
from trivium.server.served import Language
from trivium.server.workers import Job, Place, Workers


@dataclass(frozen=True)
class Said:
    """Text that became certain, and the tokens made since the last one."""

    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Called:
    """The model calls this tool; its arguments follow as `Argued`."""

    id: str
    name: str


@dataclass(frozen=True)
class Argued:
    """The next piece of the arguments, which are JSON."""

    text: str


Piece = Said | Called | Argued | Finish
Pieces = AsyncGenerator[list[tuple[int, Piece]], None]


@dataclass(frozen=True)
class Choice:
    """One of the n answers to a request.

    `job` makes events of the engine, or pieces right away; `read` turns an event into pieces. The
    last piece is a Finish: streamed or not, an answer is made of the same pieces.
    """

    job: Job[Token | End | Piece]
    read: Callable[[Token | End], Iterable[Piece]]


def answering(model: Language, run: Run) -> Job[Token | End | Piece]:
    """The job of a run that has nothing before it."""

    def job(place: Place[Token | End | Piece]) -> None:
        model.batcher.submit(run, place.tell, place.left)

    return job


@dataclass(frozen=True)
class Plan:
    """What was asked for (`object` and `prefix` are OpenAI's names of the answer), by choices; the
    n choices of a prompt stand together."""

    object: str
    prefix: str
    body: Generation
    model: Language
    choices: Sequence[Choice]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def envelope(self, object: str) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{self.id}",
            "object": object,
            "created": self.created,
            "model": self.model.id,
            "system_fingerprint": self.model.fingerprint,
        }

    @property
    def counted(self) -> bool:
        """Whether a stream ends with its usage."""
        options = self.body.stream_options
        return bool(options and options.include_usage)

    def chunk(self, object: str, choices: Sequence[Any]) -> dict[str, Any]:
        """A part of a stream; the usage that is promised is null until its end."""
        made = self.envelope(object) | {"choices": choices}
        return made | {"usage": None} if self.counted else made


async def answer(plan: Plan, workers: Workers, metrics: Metrics, start: float) -> Pieces:
    """The pieces of all choices as they are made, counted. `start` is when the request came
    (time.monotonic)."""
    first = True
    async with contextlib.aclosing(workers.run([c.job for c in plan.choices])) as batches:
        async for batch in batches:
            made: list[tuple[int, Piece]] = []
            for i, item in batch:
                if isinstance(item, Token | End):
                    made += ((i, piece) for piece in plan.choices[i].read(item))
                else:
                    made.append((i, item))
            if not made:
                continue
            if first:
                metrics.first_token.add(time.monotonic() - start)
                first = False
            for _, piece in made:
                if isinstance(piece, Finish):
                    metrics.tokens["prompt"] += piece.usage.prompt_tokens
                    metrics.tokens["cached"] += piece.usage.cached_tokens
                    metrics.tokens["completion"] += piece.usage.completion_tokens
            yield made


class Total:
    """The usage of a request: each prompt is counted once, whatever the number of choices."""

    def __init__(self, plan: Plan) -> None:
        self._choices = plan.body.n or 1  # for each prompt
        self._prompts: dict[int, Usage] = {}
        self._made = 0

    def add(self, choice: int, used: Usage) -> None:
        # Of the choices of a prompt, the first that ends may have found it in the cache: what the
        # request cost is told by the one that had to read the most.
        known = self._prompts.setdefault(choice // self._choices, used)
        if used.cached_tokens < known.cached_tokens:
            self._prompts[choice // self._choices] = used
        self._made += used.completion_tokens

    def to_json(self) -> dict[str, Any]:
        read = sum(used.prompt_tokens for used in self._prompts.values())
        cached = sum(used.cached_tokens for used in self._prompts.values())
        return {
            "prompt_tokens": read,
            "completion_tokens": self._made,
            "total_tokens": read + self._made,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
