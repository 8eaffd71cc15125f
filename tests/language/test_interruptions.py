"""Ctrl-C, or an error, at any place: what is computed afterwards is right all the same."""

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.language import engine as engine_module
from trivium.language.beam import beam_search
from trivium.language.engine import Engine
from trivium.language.generation import End, Request, Token
from trivium.nn import attention

MakeEngine = Callable[..., Engine]
WATCHED = {
    str(Path(engine_module.__file__).with_name(f"{name}.py"))
    for name in ("engine", "generation", "slots", "speculative", "beam", "native_step")
} | {attention.__file__}


@contextmanager
def interrupted_at(line: int) -> Iterator[None]:
    """Raise KeyboardInterrupt before the `line`th line of the watched files, as Ctrl-C might."""
    lines = itertools.count(1)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line" and next(lines) == line:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        sys.settrace(before)


def answer(engine: Engine, request: Request) -> list[tuple[int, str]]:
    *tokens, end = engine.generate(request)
    assert isinstance(end, End)
    return [(token.id, token.text) for token in tokens if isinstance(token, Token)]


TALK = [5, 6, 7, 8, 5, 6, 7, 8]
# With few words to choose from it repeats itself, and drafts are made.
BIAS = {7: 99.0, 80: 99.0, 81: 99.0}


def drafting(make_engine: MakeEngine, packed: bool) -> Engine:
    engine = make_engine(packed=packed)
    engine.exact_rows = True
    return engine


@pytest.mark.parametrize("packed", [True, False])
@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.integers(1, 2500), min_size=1, max_size=3),
    tail=st.lists(st.integers(3, 90), max_size=4),
    beams=st.booleans(),
)
def test_after_ctrl_c_anywhere(
    make_engine: MakeEngine, packed: bool, lines: list[int], tail: list[int], beams: bool
) -> None:
    engine = drafting(make_engine, packed)
    for line in lines:
        with interrupted_at(line):
            if beams:
                beam_search(engine, [*TALK, *tail], beams=3, max_tokens=8)
            answer(engine, Request([*TALK, *tail], max_tokens=30, logit_bias=BIAS))
        assert all(slot.cache.length >= len(slot.ids) for slot in engine.slots._slots)
    for request in (
        Request([*TALK, *tail, 9], max_tokens=20, logit_bias=BIAS),
        Request(TALK[:5], max_tokens=20, logit_bias=BIAS),
    ):
        assert answer(engine, request) == answer(drafting(make_engine, packed), request)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
@settings(max_examples=20, deadline=None)
@given(calls=st.lists(st.integers(0, 60), min_size=1, max_size=3))
def test_after_errors_of_the_model(
    make_engine: MakeEngine, error: type[BaseException], calls: list[int]
) -> None:
    engine = drafting(make_engine, False)
    request = Request(TALK, max_tokens=20, logit_bias=BIAS)
    for call in calls:
        with failing(call, error), suppress(error):
            answer(engine, request)
        assert not any(slot.busy for slot in engine.slots._slots)
        assert all(slot.cache.length == len(slot.ids) for slot in engine.slots._slots)
    assert answer(engine, request) == answer(drafting(make_engine, False), request)


@contextmanager
def failing(call: int, error: type[BaseException]) -> Iterator[None]:
    """The `call`th write to a cache from now on raises `error`, in the middle of a model."""
    calls, update = itertools.count(), attention.KVCache.update

    def faulty(*arguments: Any) -> Any:
        if next(calls) == call:
            raise error
        return update(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention.KVCache, "update", faulty)
        yield


def test_extend_is_all_or_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompts = [[5, 6, 7], [9, 8]]
    slots = [engine.slots.acquire(prompt)[0] for prompt in prompts]
    for slot, prompt in zip(slots, prompts, strict=True):
        engine.read(slot, prompt)
    with failing(3, MemoryError), pytest.raises(MemoryError):  # in the second slot
        engine.extend(slots, [[1, 2], [3, 4]])
    assert [slot.ids for slot in slots] == prompts
    assert [slot.cache.length for slot in slots] == [3, 2]
    rows = engine.extend(slots, [[1, 2], [3]])
    for prompt, new, logits in zip(prompts, [[1, 2], [3]], rows, strict=True):
        with torch.no_grad():
            expected = engine.model(torch.tensor([prompt + new]))[0, -len(new) :]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
