"""Drafts change the time that an answer takes, and nothing else."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from trivium.language.batching import Batcher
from trivium.language.constrain import compile_choice, compile_json_schema, compile_regex
from trivium.language.engine import DRAFT_ROWS, FEW_RUNS, Engine
from trivium.language.generation import End, Request, Token
from trivium.language.sampling import Sampling
from trivium.language.slots import Slot
from trivium.language.speculative import LONGEST, PATIENCE, SHORTEST, PromptLookup

MakeEngine = Callable[..., Engine]


class Watched:
    """What `extend` of an engine is asked to read: the number of tokens for each slot."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[list[int]] = []
        extend = engine.extend

        def watched(slots: Sequence[Slot], ids: Sequence[Sequence[int]]) -> list[Tensor]:
            self.steps.append([len(new) for new in ids])
            return extend(slots, ids)

        monkeypatch.setattr(engine, "extend", watched)


def row_by_row(engine: Engine) -> Engine:
    """`extend` of one token after the other: exact by construction."""
    extend = engine.extend

    def slowly(slots: Sequence[Slot], ids: Sequence[Sequence[int]]) -> list[Tensor]:
        rows = [[extend([slot], [[t]])[0] for t in new] for slot, new in zip(slots, ids, strict=1)]
        return [torch.cat(parts) for parts in rows]

    engine.extend = slowly  # type: ignore[method-assign, assignment]
    engine.exact_rows = True
    return engine


# -- requests -----------------------------------------------------------------------------------

GRAMMARS = [
    compile_choice(["the quick brown fox", "the lazy dog", "the quick brown dog"]),
    compile_regex("(fox|dog)( jumps over the lazy (fox|dog))*"),
    compile_json_schema(
        {
            "type": "object",
            "properties": {"quick_brown": {"enum": ["fox", "dog"]}, "lazy": {"type": "boolean"}},
            "required": ["quick_brown", "lazy"],
            "additionalProperties": False,
        }
    ),
]
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.0, 0.4, 1.0]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.2]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.3, -0.5]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.5]),
    seed=st.integers(0, 99),
)
PASSAGES = st.lists(st.integers(3, 300), min_size=1, max_size=9)
REQUESTS = st.builds(
    Request,
    # A passage and again a part of it: something to look up.
    prompt=st.builds(lambda a, b, n: (a * n + b + a)[:45], PASSAGES, PASSAGES, st.integers(0, 3)),
    sampling=SAMPLINGS,
    max_tokens=st.integers(1, 48),
    stop=st.lists(st.sampled_from(["e", "qu", "the ", "日本", "3"]), max_size=2),
    grammar=st.sampled_from([None, None, *GRAMMARS]),
    top_logprobs=st.sampled_from([None, 0, 2]),
    logit_bias=st.dictionaries(st.integers(3, 300), st.sampled_from([-5.0, 4.0, 9.0]), max_size=4),
)


def events_of(source: Engine | Batcher, request: Request) -> list[Token | End]:
    events = list(source.generate(request))
    assert isinstance(events[-1], End)
    return events


def uncached(events: Sequence[Token | End]) -> list[Token | End]:
    return [replace(e, cached_tokens=0) if isinstance(e, End) else e for e in events]


def content(events: Sequence[Token | End]) -> list[tuple[Any, ...]]:
    """All but the log-probabilities, which may differ in their last bits."""
    return [(getattr(e, "id", None), e.text, getattr(e, "reason", None)) for e in events]


# -- the output is kept -------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["row by row", "packed"])
def pair(request: pytest.FixtureRequest, make_engine: MakeEngine) -> tuple[Engine, Engine]:
    """Two equal engines, of which the first speculates."""
    packed = request.param == "packed"
    first, second = make_engine(3, packed=packed), make_engine(3, packed=packed)
    if packed and not first.exact_rows:
        pytest.skip("needs the native kernels")
    if not packed:
        row_by_row(first)
    second.exact_rows = False
    return first, second


@settings(max_examples=60, deadline=None)
@given(request=REQUESTS)
def test_same_events_with_and_without(pair: tuple[Engine, Engine], request: Request) -> None:
    """Equal to the last bit, log-probabilities and counts of cached tokens included."""
    speculating, plain = pair
    assert events_of(speculating, request) == events_of(plain, request)
    off = replace(request, speculate=False)  # now the prompt is cached
    assert events_of(speculating, off) == events_of(plain, off)
    assert [slot.ids for slot in speculating.slots._slots] == [
        slot.ids for slot in plain.slots._slots
    ]


@settings(max_examples=12, deadline=None)
@given(requests=st.lists(REQUESTS, min_size=2, max_size=9))
def test_same_text_in_a_batch(make_engine: MakeEngine, requests: list[Request]) -> None:
    alone = [content(events_of(make_engine(3), request)) for request in requests]
    speculating = make_engine(3)
    speculating.exact_rows = True  # as good as: float32, and no near ties here
    with Batcher(speculating) as batcher, ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda request: events_of(batcher, request), requests))
    assert [content(events) for events in together] == alone


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=st.lists(REQUESTS, min_size=2, max_size=5))
def test_same_bits_in_a_batch_of_the_native_kernels(
    make_engine: MakeEngine, requests: list[Request]
) -> None:
    speculating, plain = make_engine(3, packed=True), make_engine(3, packed=True)
    if not speculating.exact_rows:
        pytest.skip("needs the native kernels")
    plain.exact_rows = False
    alone = [uncached(events_of(plain, request)) for request in requests]
    with Batcher(speculating) as batcher, ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda request: events_of(batcher, request), requests))
    assert [uncached(events) for events in together] == alone


# -- and time is saved --------------------------------------------------------------------------

# With three words only, it repeats itself soon.
LOOP = Request([5, 6, 7, 8] * 3, max_tokens=60, logit_bias={7: 99.0, 80: 99.0, 81: 99.0})
HUM = replace(LOOP, logit_bias={7: 99.0})


def test_a_repetitive_text_takes_fewer_steps(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.exact_rows = True
    watched = Watched(engine, monkeypatch)
    assert len(events_of(engine, HUM)) == 61
    assert len(watched.steps) < 15
    assert max(map(max, watched.steps)) == DRAFT_ROWS


def test_what_is_forced_is_read_at_once(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.exact_rows = True
    watched = Watched(engine, monkeypatch)
    request = Request([5, 9], Sampling(1.0, seed=4), max_tokens=80, grammar=GRAMMARS[2])
    made = len(events_of(engine, request)) - 1
    assert len(watched.steps) < made / 2


@pytest.mark.parametrize("off", ["request", "engine"])
def test_off(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, off: str) -> None:
    engine = make_engine()
    engine.exact_rows = off != "engine"
    watched = Watched(engine, monkeypatch)
    events_of(engine, replace(LOOP, speculate=off != "request"))
    assert set(map(tuple, watched.steps)) == {(1,)}


def test_no_step_becomes_too_large(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.exact_rows = True
    watched = Watched(engine, monkeypatch)
    requests = [replace(HUM, prompt=[9 + i], max_tokens=20 + 5 * i) for i in range(10)]
    with Batcher(engine) as batcher, ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda request: events_of(batcher, request), requests))
    assert max(map(sum, watched.steps)) <= DRAFT_ROWS
    assert all(sum(step) == len(step) for step in watched.steps if len(step) >= FEW_RUNS)
    assert any(sum(step) > len(step) for step in watched.steps)


def test_leaving_in_the_middle_of_a_draft_keeps_the_slot_sound(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.exact_rows = True
    expected = events_of(make_engine(), LOOP)
    whole = [*LOOP.prompt, *(event.id for event in expected if isinstance(event, Token))]
    for count in range(1, 40, 3):
        stream = engine.generate(LOOP)
        read = list(itertools.islice(stream, count))
        stream.close()  # type: ignore[attr-defined]
        assert content(read) == content(expected[:count])
        for slot in engine.slots._slots:
            assert slot.ids == whole[: len(slot.ids)] and not slot.busy
        assert content(events_of(engine, LOOP)) == content(expected)


# -- the lookup ---------------------------------------------------------------------------------


def looked_up(tokens: list[int]) -> int | None:
    """The definition, computed naively: the place of the token that should come next."""
    for n in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - n : end] == tokens[len(tokens) - n :]:
                return end
    return None


@given(st.lists(st.integers(0, 3), max_size=40))
def test_the_longest_n_gram_and_of_these_the_last(tokens: list[int]) -> None:
    assert PromptLookup(tokens)._place == looked_up(tokens)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 9))
def test_a_draft_goes_on_as_the_text_did(tokens: list[int], most: int) -> None:
    draft = PromptLookup(tokens).draft(most)
    assert len(draft) <= most
    if draft:
        place = looked_up(tokens)
        assert place is not None
        longer = list(tokens)
        for i, token in enumerate(draft):  # beyond its end, the text goes on with the draft
            assert token == longer[place + i]
            longer.append(token)


def passes(lookup: PromptLookup, text: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(drafted, accepted) of each pass over a text that is known in advance."""
    place = 0
    while place < len(text):
        draft = lookup.draft(DRAFT_ROWS - 1)
        right = 0
        while right < len(draft) and text[place : place + right + 1] == draft[: right + 1]:
            right += 1
        for token in text[place : place + right + 1]:
            lookup.push(token)
        place += right + 1
        yield len(draft), right


def test_a_copy_is_drafted_with_growing_length() -> None:
    text = torch.randperm(500, generator=torch.Generator().manual_seed(0)).tolist()
    drafts = list(passes(PromptLookup(text), text))
    assert len(drafts) < len(text) / 10
    assert all(drafted == accepted for drafted, accepted in drafts[:-1])
    assert drafts[SHORTEST + PATIENCE - 1 : SHORTEST + PATIENCE + 2] == [(0, 0), (2, 2), (5, 5)]


@pytest.mark.parametrize("alphabet", [2, 20, 5000])
def test_a_text_without_repetition_costs_little(alphabet: int) -> None:
    """Random tokens: whatever is drafted, is drafted in vain."""
    random = torch.Generator().manual_seed(0)
    text = torch.randint(alphabet, (3000,), generator=random).tolist()
    drafted = sum(drafted - accepted for drafted, accepted in passes(PromptLookup([]), text))
    # A token read in vain costs about a third of a step.
    assert drafted / 3 < 0.03 * len(text) or alphabet == 2
    assert drafted < len(text) / 4
