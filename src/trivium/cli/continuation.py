"""The continuations of a text that `complete` shows: one, several draws, or the best beams."""

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trivium.cli.logprobs import Row

if TYPE_CHECKING:
    from trivium.language.beam import Hypothesis
    from trivium.language.engine import Engine
    from trivium.language.generation import End, Request, Token

Events = Iterator["Token | End"]
Answers = Iterator[tuple[dict[str, Any], Events]]  # what sets each apart, and its events


@dataclass(frozen=True)
class Answer:
    """A continuation. `note` tells what sets it apart from the others: its seed, or its score."""

    note: dict[str, Any]
    tokens: Sequence["Token"]
    end: "End"

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens) + self.end.text

    @property
    def rows(self) -> list[Row]:
        return [Row(token.id, token.logprob, token.top) for token in self.tokens]


def collect(note: dict[str, Any], events: Events, show: Callable[["Token | End"], None]) -> Answer:
    """The continuation that `events` make; `show` gets each of them as it comes."""
    from trivium.language.generation import End

    tokens: list[Token] = []
    with contextlib.closing(events):  # type: ignore[type-var]
        for event in events:
            show(event)
            if isinstance(event, End):
                return Answer(note, tokens, event)
            tokens.append(event)
    raise AssertionError("a generation ends with an End")


def draw(engine: "Engine", request: "Request", samples: int) -> Answers:
    """So many draws, with seeds that follow one another. All are made at once: the prompt is read
    once, and a step of the model serves all."""
    if samples == 1:
        yield {}, engine.generate(request)
        return
    from trivium.language.batching import Batcher

    first = request.sampling.seed
    if first is None:
        first = secrets.randbelow(1 << 32)
    requests = [
        replace(request, sampling=replace(request.sampling, seed=first + number))
        for number in range(samples)
    ]
    with Batcher(engine) as batcher:
        streams = [batcher.generate(each) for each in requests]
        for each, stream in zip(requests, streams, strict=True):
            yield {"seed": each.sampling.seed}, stream


def search(
    engine: "Engine", request: "Request", beams: int, count: int, length_penalty: float
) -> Answers:
    """The best of a beam search."""
    from trivium.language.beam import beam_search

    found = beam_search(
        engine,
        request.prompt,
        beams=beams,
        max_tokens=request.max_tokens or engine.room(request.prompt, None),
        count=count,
        length_penalty=length_penalty,
        grammar=request.grammar,
    )
    for hypothesis in found:
        yield {"score": hypothesis.score}, _told(engine, request, hypothesis)


def _told(engine: "Engine", request: "Request", hypothesis: "Hypothesis") -> Events:
    """The events that generating the same text would give."""
    from trivium.evaluate.likelihood import score
    from trivium.language.generation import End, Token
    from trivium.language.tokenizer import StreamDecoder

    ids = hypothesis.ids[:-1] if hypothesis.reason == "stop" else hypothesis.ids
    decoder, top = StreamDecoder(engine.tokenizer), request.top_logprobs
    if top is None:
        yield from (Token(id, decoder.push(id)) for id in ids)
    else:
        for found in score(engine, request.prompt, ids, top=top):
            yield Token(found.id, decoder.push(found.id), found.logprob, found.top)
    yield End(hypothesis.reason, decoder.flush(), len(request.prompt), len(hypothesis.ids), 0)


def prompt_rows(engine: "Engine", request: "Request") -> list[Row]:
    """The prompt's own tokens, as likely as the model found them. The first has none before it."""
    from trivium.evaluate.likelihood import score

    ids, top = list(request.prompt), request.top_logprobs or 0
    found = score(engine, ids[:1], ids[1:], top=top)
    return [Row(ids[0], None), *(Row(token.id, token.logprob, token.top) for token in found)]


def report(engine: "Engine", answers: Sequence[Answer], *, logprobs: bool) -> dict[str, Any]:
    """What --json prints of the continuations: of one alone its fields, of several a list."""
    choices = []
    for answer in answers:
        choice = {"text": answer.text, "finish_reason": answer.end.reason, **answer.note}
        if logprobs:
            choice["logprobs"] = [row.record(engine.tokenizer) for row in answer.rows]
        choices.append(choice)
    ends = [answer.end for answer in answers]
    usage = {
        "prompt_tokens": ends[0].prompt_tokens,
        "completion_tokens": sum(end.completion_tokens for end in ends),
        "cached_tokens": ends[0].cached_tokens,
    }
    made = {"choices": choices} if len(choices) > 1 else choices[0]
    return {"model": engine.language_model.name, **made, "usage": usage}
