"""/v1/completions: a text and how it goes on, in OpenAI's older form."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from trivium.language.engine import Engine, Request, Token
from trivium.language.sampling import log_probabilities
from trivium.language.tokenizer import StreamDecoder
from trivium.llmos.messages import Finish, Usage
from trivium.nn.attention import KVCache
from trivium.server.errors import ApiError
from trivium.server.generation import (
    Piece,
    Pieces,
    Said,
    Total,
    check_room,
    new_id,
    request,
    text_pieces,
    token_text,
)
from trivium.server.schema import MOST_CHOICES, CompletionRequest
from trivium.server.served import Language
from trivium.server.streams import Events
from trivium.server.workers import Job

DEFAULT_TOKENS = 16  # OpenAI's
ECHO_CHUNK = 128  # tokens; bounds the memory of the logits of a prompt


@dataclass(frozen=True)
class Plan:
    """A completion request, read and found to be possible."""

    body: CompletionRequest
    model: Language
    jobs: Sequence[Job[Piece]]
    id: str = field(default_factory=lambda: new_id("cmpl"))
    created: int = field(default_factory=lambda: int(time.time()))

    def envelope(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model.id,
            "system_fingerprint": self.model.fingerprint,
        }


def plan(model: Language, body: CompletionRequest) -> Plan:
    """Everything that can be refused is refused here, before anything waits or is computed."""
    if body.suffix:
        raise _wrong("suffix", "suffix is not supported: models here only continue a text")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise _wrong("best_of", "best_of is not supported: ask for n and choose")
    prompts = _prompts(body, model)
    if len(prompts) * (body.n or 1) > MOST_CHOICES:
        raise _wrong("prompt", f"more than {MOST_CHOICES} choices in one request")
    wanted = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    jobs: list[Job[Piece]] = []
    for prompt, text in prompts:
        check_room(model.engine, prompt, wanted, "prompt")
        for choice in range(body.n or 1):
            asked = request(
                body,
                model.engine,
                prompt,
                choice,
                max_tokens=wanted,
                top_logprobs=body.logprobs,
            )
            jobs.append(partial(_pieces, model.engine, asked, text if body.echo else None))
    return Plan(body, model, jobs)


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")


def _prompts(body: CompletionRequest, model: Language) -> list[tuple[list[int], str]]:
    """The tokens and the text of each prompt."""
    given: Sequence[Any] = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if given and isinstance(given[0], int):
        given = [given]
    tokenizer, vocabulary = model.engine.tokenizer, model.engine.model.config.vocab_size
    prompts = []
    for prompt in given:
        if isinstance(prompt, str):
            prompts.append((tokenizer.encode(prompt, wrap=True), prompt))
            continue
        if any(id >= vocabulary for id in prompt):
            raise _wrong("prompt", f"a token of the prompt is not below {vocabulary}")
        prompts.append((prompt, tokenizer.decode(prompt)))
    if not prompts or not all(ids for ids, _ in prompts):
        raise _wrong("prompt", "the prompt is empty")
    return prompts


def _pieces(engine: Engine, asked: Request, echo: str | None) -> Iterator[Piece]:
    logprobs = asked.top_logprobs
    if echo is not None:
        tokens = () if logprobs is None else _read(engine, asked.prompt, logprobs)
        yield Said(echo, tuple(tokens))
    if asked.max_tokens == 0:
        yield Finish("length", Usage(len(asked.prompt)))
        return
    with contextlib.closing(engine.generate(asked)) as events:  # type: ignore[type-var]
        yield from text_pieces(events, logprobs=logprobs is not None)


@torch.inference_mode()
def _read(engine: Engine, prompt: Sequence[int], top: int) -> list[Token]:
    """The prompt's tokens with their log-probabilities; the first follows nothing and has none."""
    tokens, cache = [Token(prompt[0], "")], KVCache()
    for start in range(0, len(prompt) - 1, ECHO_CHUNK):
        ids = list(prompt[start : start + ECHO_CHUNK])
        block = torch.tensor([ids], device=engine.language_model.device)
        rows = engine.model.logits(engine.model.features(block, cache)[0]).float()
        for row, id in zip(rows, prompt[start + 1 : start + 1 + ECHO_CHUNK], strict=False):
            logprobs = log_probabilities(row)
            best = torch.topk(logprobs, min(top, len(logprobs)))
            pairs = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            tokens.append(Token(id, "", float(logprobs[id]), pairs))
    return tokens


class _Logprobs:
    """Log-probabilities of one choice in the older form, with the place of each token."""

    def __init__(self, engine: Engine) -> None:
        self._tokenizer = engine.tokenizer
        self._decoder = StreamDecoder(engine.tokenizer)
        self._offset = 0

    def to_json(self, tokens: Sequence[Token]) -> dict[str, Any]:
        texts, offsets, values = list[str](), list[int](), list[float | None]()
        tops: list[dict[str, float] | None] = []
        for token in tokens:
            texts.append(token_text(self._tokenizer, token.id))
            offsets.append(self._offset)
            self._offset += len(self._decoder.push(token.id))
            values.append(None if token.logprob is None else max(token.logprob, -9999.0))
            top = {token_text(self._tokenizer, i): max(p, -9999.0) for i, p in token.top}
            tops.append(None if token.logprob is None else top)
        return {
            "tokens": texts,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }


async def whole(plan: Plan, pieces: Pieces) -> dict[str, Any]:
    """The answer in one piece."""
    count = len(plan.jobs)
    texts, reasons = [""] * count, [""] * count
    tokens = [list[Token]() for _ in range(count)]
    total = Total(plan.body.n or 1)
    async with contextlib.aclosing(pieces):
        async for i, piece in pieces:
            if isinstance(piece, Said):
                texts[i] += piece.text
                tokens[i] += piece.tokens
            elif isinstance(piece, Finish):
                reasons[i] = piece.reason
                total.add(i, piece.usage)
    wanted = plan.body.logprobs is not None
    choices = [
        {
            "index": i,
            "text": texts[i],
            "logprobs": _Logprobs(plan.model.engine).to_json(tokens[i]) if wanted else None,
            "finish_reason": reasons[i],
        }
        for i in range(count)
    ]
    return plan.envelope() | {"choices": choices, "usage": total.to_json()}


async def chunks(plan: Plan, pieces: Pieces) -> Events:
    """The answer as it is made."""
    options = plan.body.stream_options
    counted = bool(options and options.include_usage)
    total, envelope = Total(plan.body.n or 1), plan.envelope()
    logprobs = [_Logprobs(plan.model.engine) for _ in plan.jobs]
    async with contextlib.aclosing(pieces):
        async for i, piece in pieces:
            choice: dict[str, Any] = {"index": i, "text": "", "logprobs": None}
            choice["finish_reason"] = None
            if isinstance(piece, Said):
                choice["text"] = piece.text
                if plan.body.logprobs is not None:
                    choice["logprobs"] = logprobs[i].to_json(piece.tokens)
            elif isinstance(piece, Finish):
                choice["finish_reason"] = piece.reason
                total.add(i, piece.usage)
            yield envelope | {"choices": [choice]} | ({"usage": None} if counted else {})
    if counted:
        yield envelope | {"choices": [], "usage": total.to_json()}
