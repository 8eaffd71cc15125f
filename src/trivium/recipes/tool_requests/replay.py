"""What the untrained model says in plain conversations: learnt again, so that it is kept.

A reply that goes on for long is cut; it is then learnt without an end. Most are cut early: that no
tool is called shows in the first words.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trivium.language.batching import Batcher
from trivium.language.engine import Engine
from trivium.language.generation import End, Request
from trivium.language.pretrained import LanguageModel
from trivium.language.sampling import Sampling
from trivium.recipes.tool_requests.talk import follow_up, talk
from trivium.recipes.tool_requests.written import plain

LONGEST, SHORT = 64, 20  # tokens
TOGETHER = 8
CALM = Sampling(frequency_penalty=0.3)  # as the assistant answers


@dataclass(frozen=True)
class Reply:
    """A plain turn: earlier turns, the request, the answer, and whether the answer ended."""

    past: tuple[tuple[str, str], ...]
    request: str
    answer: str
    whole: bool


def replies(language_model: LanguageModel, count: int, seed: int) -> Iterator[Reply]:
    """`count` replies of the model, to requests that were written one by one and to those of
    patterns; some are to a second request."""
    rng = random.Random(seed)
    engine = Engine(language_model)
    long, again = count // 4, count // 8
    one_by_one = rng.sample(plain(), min(len(plain()), (count - again) * 3 // 4))
    first = [Reply(past, request, "", True) for past, request in one_by_one]
    first += [Reply((), talk(rng), "", True) for _ in range(count - again - len(first))]
    rng.shuffle(first)
    answered = []
    for reply in _answered(engine, first[:long], LONGEST):
        answered.append(reply)
        yield reply
    whole = [reply for reply in answered if reply.whole and reply.answer] or answered
    second = [
        Reply((*reply.past, (reply.request, reply.answer)), follow_up(rng), "", True)
        for reply in rng.choices(whole, k=again)
    ]
    yield from _answered(engine, second, LONGEST)
    yield from _answered(engine, first[long:], SHORT)


def _answered(engine: Engine, asked: Sequence[Reply], longest: int) -> Iterator[Reply]:
    template = engine.language_model.template
    assert template is not None
    with Batcher(engine, TOGETHER) as batcher:
        for start in range(0, len(asked), TOGETHER):
            some = asked[start : start + TOGETHER]
            streams = []
            for reply in some:
                messages = [
                    {"role": role, "content": text}
                    for turn in (*reply.past, (reply.request,))
                    for role, text in zip(("user", "assistant"), turn, strict=False)
                ]
                prompt = template.encode(engine.tokenizer, messages)
                streams.append(batcher.generate(Request(prompt, CALM, max_tokens=longest)))
            for reply, stream in zip(some, streams, strict=True):
                events = list(stream)
                end = events[-1]
                assert isinstance(end, End)
                text = "".join(event.text for event in events)
                yield Reply(reply.past, reply.request, text, end.reason == "stop")
