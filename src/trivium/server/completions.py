"""/v1/completions: a text and how it goes on, in OpenAI's older form."""

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from trivium.language.engine import Engine
from trivium.language.generation import Token
from trivium.language.sampling import log_probabilities
from trivium.language.slots import Slot
from trivium.language.tokenizer import StreamDecoder
from trivium.llmos.messages import Finish, Usage
from trivium.server.errors import ApiError
from trivium.server.generation import check_room, request, text_reader, token_text
from trivium.server.plan import Choice, Pieces, Plan, Said, Total, answering
from trivium.server.schema import MOST_CHOICES, CompletionRequest
from trivium.server.served import Language
from trivium.server.streams import Events
from trivium.server.workers import Job, Place

DEFAULT_TOKENS = 16  # OpenAI's
ECHO_LOGITS = 8 << 20  # numbers that are held at once: 32 MB


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
    choices = []
    for prompt, text in prompts:
        check_room(model.engine, prompt, wanted, "prompt")
        for i in range(body.n or 1):
            asked = request(
                body, model.engine, prompt, i, max_tokens=wanted, top_logprobs=body.logprobs
            )
            job = answering(model, model.batcher.run(asked)) if wanted else _nothing(len(prompt))
            if body.echo:
                job = partial(_echo, model, prompt, text, body.logprobs, job)
            choices.append(Choice(job, text_reader(logprobs=body.logprobs is not None)))
    return Plan("text_completion", "cmpl", body, model, choices)


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


def _nothing(read: int) -> Job[Any]:
    """The job of an answer of no tokens."""

    def job(place: Place[Any]) -> None:
        place.post([Finish("length", Usage(read))])
        place.end()

    return job


def _echo(
    model: Language,
    prompt: Sequence[int],
    text: str,
    top: int | None,
    answer: Job[Any],
    place: Place[Any],
) -> None:
    """The prompt itself, with log-probabilities if they are wanted, and then the answer."""
    if top is None:
        place.post([Said(text)])
        answer(place)
        return

    call, slots = model.batcher.worker.call, model.engine.slots

    def work() -> None:
        tokens = [Token(prompt[0], "")]  # follows nothing and has no probability
        slot, _ = call(partial(slots.acquire, prompt[:1]))
        try:
            while len(tokens) < len(prompt):
                if place.left.is_set():
                    return
                tokens += call(partial(_score, model.engine, slot, prompt, top))
        finally:
            call(partial(slots.release, slot))  # the answer begins with what was read
        place.post([Said(text, tuple(tokens))])
        answer(place)

    place.thread(work)


def _score(engine: Engine, slot: Slot, prompt: Sequence[int], top: int) -> list[Token]:
    """Read a chunk of the prompt; the tokens that follow each of its own."""
    start = len(slot.ids)
    size = max(1, min(engine.chunk_behind(start), ECHO_LOGITS // engine.model.config.vocab_size))
    targets = prompt[start + 1 : start + 1 + size]
    (rows,) = engine.extend([slot], [prompt[start : start + len(targets)]])
    tokens = []
    for row, id in zip(rows, targets, strict=True):
        logprobs = log_probabilities(row)
        best = torch.topk(logprobs, min(top, len(logprobs)))
        pairs = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        tokens.append(Token(id, "", float(logprobs[id]), pairs))
    return tokens


class _Logprobs:
    """Log-probabilities of one choice in the older form, with the place of each token."""

    def __init__(self, plan: Plan) -> None:
        assert isinstance(plan.body, CompletionRequest)
        self._wanted = plan.body.logprobs is not None
        self._tokenizer = plan.model.engine.tokenizer
        self._decoder = StreamDecoder(self._tokenizer)
        self._offset = 0

    def to_json(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._wanted:
            return None
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
    count = len(plan.choices)
    texts, reasons = [""] * count, [""] * count
    tokens = [list[Token]() for _ in range(count)]
    total = Total(plan)
    async with contextlib.aclosing(pieces):
        async for batch in pieces:
            for i, piece in batch:
                if isinstance(piece, Said):
                    texts[i] += piece.text
                    tokens[i] += piece.tokens
                elif isinstance(piece, Finish):
                    reasons[i] = piece.reason
                    total.add(i, piece.usage)
    choices = [
        {
            "index": i,
            "text": texts[i],
            "logprobs": _Logprobs(plan).to_json(tokens[i]),
            "finish_reason": reasons[i],
        }
        for i in range(count)
    ]
    return plan.envelope(plan.object) | {"choices": choices, "usage": total.to_json()}


async def chunks(plan: Plan, pieces: Pieces) -> Events:
    """The answer as it is made."""
    total = Total(plan)
    logprobs = [_Logprobs(plan) for _ in plan.choices]
    async with contextlib.aclosing(pieces):
        async for batch in pieces:
            made = []
            for i, piece in batch:
                choice: dict[str, Any] = {"index": i, "text": "", "logprobs": None}
                choice["finish_reason"] = None
                if isinstance(piece, Said):
                    choice["text"] = piece.text
                    choice["logprobs"] = logprobs[i].to_json(piece.tokens)
                elif isinstance(piece, Finish):
                    choice["finish_reason"] = piece.reason
                    total.add(i, piece.usage)
                made.append(plan.chunk(plan.object, [choice]))
            yield made
    if plan.counted:
        yield [plan.chunk(plan.object, []) | {"usage": total.to_json()}]
