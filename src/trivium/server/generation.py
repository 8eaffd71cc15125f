"""From what a client asks to what the engine is asked, and from tokens to log-probabilities."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from trivium.errors import TriviumError, UsageError
from trivium.language.constrain import Constraint, Grammar, compile_json_schema
from trivium.language.engine import ContextOverflow, Engine
from trivium.language.generation import End, Request, Token
from trivium.language.sampling import Sampling
from trivium.language.tokenizer import Tokenizer
from trivium.llmos.messages import Finish, Usage
from trivium.server.errors import ApiError
from trivium.server.plan import Piece, Said
from trivium.server.schema import Generation

MOST_STOP = 1 << 12  # characters of all stop strings
MOST_SCHEMA = 1 << 16  # characters of JSON; larger ones take seconds to be read


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
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if sum(map(len, stop)) > MOST_STOP:
        raise ApiError(
            400,
            f"the stop strings have more than {MOST_STOP} characters together",
            param="stop",
            code="invalid_value",
        )
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
        stop=stop,
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


def grammar_of(schema: Mapping[str, Any], param: str, name: str = "") -> Grammar:
    """The grammar of a JSON schema. Raises ApiError for one that is wrong or too large."""
    text = json.dumps(schema)
    try:
        if len(text) > MOST_SCHEMA:
            raise UsageError(f"the JSON schema is longer than {MOST_SCHEMA} characters")
        return _compiled(text)
    except UsageError as error:
        message = f"{name}: {error}" if name else str(error)
        raise ApiError(400, message, param=param, code="invalid_value") from error


@lru_cache(maxsize=128)  # clients send the same tools with every request
def _compiled(schema: str) -> Grammar:
    return compile_json_schema(json.loads(schema))


def started(engine: Engine, grammar: Grammar, param: str) -> Constraint:
    """A constraint at the beginning of its text.

    Raises ApiError for a grammar that is too complex to be followed, before it joins a batch.
    """
    try:
        constraint = engine.constrainer.start(grammar)
        for token in constraint.forced():  # up to the first choice, such as that of a property
            constraint.accept(token)
        constraint.mask(torch.zeros(engine.model.config.vocab_size))
    except TriviumError as error:
        raise ApiError(400, str(error), param=param, code="invalid_value") from error
    constraint.reset()
    return constraint


def text_reader(*, logprobs: bool) -> Callable[[Token | End], Iterator[Piece]]:
    """Reads plain text. With `logprobs` a token is told even if it completes no character."""

    def read(event: Token | End) -> Iterator[Piece]:
        if isinstance(event, End):
            if event.text:
                yield Said(event.text)
            yield Finish(event.reason, usage(event))
        elif event.text or logprobs:
            yield Said(event.text, (event,) if logprobs else ())

    return read


def usage(end: End) -> Usage:
    return Usage(end.prompt_tokens, end.completion_tokens, end.cached_tokens)


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
