"""From what a client asks to what the engine is asked, and from tokens to log-probabilities.

A choice is one of the n answers to a request. Its job yields `Said` and `ToolCall`, then one
`Finish`: streamed or not, an answer is made of the same events.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trivium.errors import TriviumError
from trivium.language.constrain import Grammar
from trivium.language.engine import ContextOverflow, End, Engine, Request, Token
from trivium.language.sampling import Sampling
from trivium.language.tokenizer import Tokenizer
from trivium.llmos.messages import Finish, ToolCall, Usage
from trivium.server.errors import ApiError
from trivium.server.metrics import Metrics
from trivium.server.schema import Generation


@dataclass(frozen=True)
class Said:
    """Text that became certain, and the tokens made since the last one."""

    text: str
    tokens: tuple[Token, ...] = ()


Piece = Said | ToolCall | Finish
Pieces = AsyncGenerator[tuple[int, Piece], None]


def request(
    body: Generation,
    engine: Engine,
    prompt: Sequence[int],
    choice: int,
    *,
    max_tokens: int | None,
    top_logprobs: int | None,
    grammar: Grammar | None = None,
) -> Request:
    """What the engine is asked for one choice. Raises UsageError and ApiError."""
    # A seed gives each choice its own, so that n answers differ and can be had again.
    seed = None if body.seed is None else (body.seed + choice) % 2**63
    stop = body.stop or ()
    return Request(
        prompt,
        Sampling(
            temperature=_or(body.temperature, 1.0),
            top_k=max(_or(body.top_k, 0), 0),
            top_p=_or(body.top_p, 1.0),
            min_p=_or(body.min_p, 0.0),
            repetition_penalty=_or(body.repeat_penalty, 1.0),
            frequency_penalty=_or(body.frequency_penalty, 0.0),
            presence_penalty=_or(body.presence_penalty, 0.0),
            seed=seed,
        ),
        max_tokens=max_tokens,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        grammar=grammar,
        top_logprobs=top_logprobs,
        logit_bias=_bias(body.logit_bias or {}, engine.model.config.vocab_size),
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _bias(given: Mapping[str, float], vocabulary: int) -> dict[int, float]:
    for key in given:
        if not (key.isascii() and key.isdecimal() and len(key) < 12 and int(key) < vocabulary):
            raise ApiError(
                400,
                f"logit_bias: {key[:40]!r} is no token; there are {vocabulary}, from 0",
                param="logit_bias",
                code="invalid_value",
            )
    return {int(key): bias for key, bias in given.items()}


def check_room(engine: Engine, prompt: Sequence[int], wanted: int | None, param: str) -> None:
    """Raises ApiError with the counts when the prompt, and what is asked, do not fit."""
    try:
        engine.room(prompt, wanted)
    except ContextOverflow as error:
        raise ApiError(400, str(error), param=param, code="context_length_exceeded") from error


def check_grammar(engine: Engine, grammar: Grammar, param: str) -> None:
    """Raises ApiError for a grammar that is too complex to be followed, before it joins a batch."""
    try:
        constraint = engine.constrainer.start(grammar)
        for token in constraint.forced():  # up to the first choice, such as that of a property
            constraint.accept(token)
        constraint.mask(torch.zeros(engine.model.config.vocab_size))
    except TriviumError as error:
        raise ApiError(400, str(error), param=param, code="invalid_value") from error


def text_pieces(events: Iterable[Token | End], *, logprobs: bool) -> Iterator[Piece]:
    """The pieces of plain text. A token is kept for the next text when logprobs are wanted."""
    for event in events:
        if isinstance(event, End):
            if event.text:
                yield Said(event.text)
            yield Finish(event.reason, usage(event))
        elif event.text or logprobs:
            yield Said(event.text, (event,) if logprobs else ())


def usage(end: End) -> Usage:
    return Usage(end.prompt_tokens, end.completion_tokens, end.cached_tokens)


async def observed(pieces: Pieces, metrics: Metrics, start: float) -> Pieces:
    """`pieces`, counted. `start` is when the request came (time.monotonic)."""
    first = True
    async for index, piece in pieces:
        if first:
            metrics.first_token.add(time.monotonic() - start)
            first = False
        if isinstance(piece, Finish):
            metrics.tokens["prompt"] += piece.usage.prompt_tokens
            metrics.tokens["cached"] += piece.usage.cached_tokens
            metrics.tokens["completion"] += piece.usage.completion_tokens
        yield index, piece


class Total:
    """The usage of a request: each prompt is counted once, whatever the number of choices."""

    def __init__(self, choices: int) -> None:
        self._choices = choices  # for each prompt
        self._prompts: dict[int, Usage] = {}
        self._made = 0

    def add(self, choice: int, used: Usage) -> None:
        self._prompts.setdefault(choice // self._choices, used)
        self._made += used.completion_tokens

    def to_json(self) -> dict[str, Any]:
        read = sum(used.prompt_tokens for used in self._prompts.values())
        cached = sum(used.cached_tokens for used in self._prompts.values())
        return {
            "prompt_tokens": read,
            "completion_tokens": self._made,
            "total_tokens": read + self._made,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def token_text(tokenizer: Tokenizer, id: int) -> str:
    """A token alone; bytes that are no character of their own become U+FFFD."""
    return tokenizer.token_bytes(id).decode(errors="replace")


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token]) -> list[dict[str, Any]]:
    def entry(id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": token_text(tokenizer, id),
            # JSON has no infinity; a token that was impossible gets OpenAI's floor.
            "logprob": max(logprob, -9999.0),
            "bytes": list(tokenizer.token_bytes(id)),
        }

    return [
        entry(token.id, token.logprob or 0.0)
        | {"top_logprobs": [entry(id, logprob) for id, logprob in token.top]}
        for token in tokens
    ]
