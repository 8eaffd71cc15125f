"""Beam search; that it is transformers' is tested in tests/parity."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trivium.errors import TriviumError, UsageError
from trivium.language.beam import beam_search
from trivium.language.constrain import compile_choice, compile_json_schema
from trivium.language.engine import ContextOverflow, Engine
from trivium.language.generation import Request, Token

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module", params=["float32", "packed"])
def engine(request: pytest.FixtureRequest, make_engine: MakeEngine) -> Engine:
    return make_engine(2, packed=request.param == "packed")


def log_probability(engine: Engine, prompt: list[int], ids: tuple[int, ...]) -> float:
    return sum(engine.score(prompt, [ids])[0])


def test_a_score_is_that_of_its_text(engine: Engine) -> None:
    prompt = [5, 6, 7]
    found = beam_search(engine, prompt, beams=4, max_tokens=12, count=4, length_penalty=0.7)
    assert len({h.ids for h in found}) == 4
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    for h in found:
        total = log_probability(engine, prompt, h.ids)
        assert h.score == pytest.approx(total / len(h.ids) ** 0.7, rel=1e-3)
        assert h.text == engine.tokenizer.decode(h.ids[:-1] if h.reason == "stop" else h.ids)


def test_many_beams_find_the_likeliest_text(engine: Engine) -> None:
    """With a beam for every token, search of two steps is exhaustive."""
    prompt, vocabulary = [5, 6, 7], engine.model.config.vocab_size
    (best,) = beam_search(engine, prompt, beams=vocabulary, max_tokens=2, length_penalty=0.0)
    likeliest = -float("inf")
    for first in range(vocabulary):
        if first not in engine.tokenizer.stop_ids:
            slot, _ = engine.slots.acquire([*prompt, first])
            second = engine.read(slot, [*prompt, first]).log_softmax(-1)
            engine.slots.release(slot)
            total = log_probability(engine, prompt, (first,)) + float(second.max())
            likeliest = max(likeliest, total)
    assert best.score == pytest.approx(likeliest, rel=1e-3) or best.reason == "stop"


def test_one_beam_is_greedy(engine: Engine) -> None:
    prompt = [5, 6, 7]
    (best,) = beam_search(engine, prompt, beams=1, max_tokens=20)
    *tokens, end = engine.generate(Request(prompt, max_tokens=20))
    ids = [token.id for token in tokens if isinstance(token, Token)]
    assert list(best.ids[: len(ids)]) == ids and best.reason == getattr(end, "reason", None)


def test_a_step_reads_all_beams_together(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    extend, steps = engine.extend, []

    def watched(slots: Any, ids: Any) -> Any:
        steps.append([len(new) for new in ids])
        return extend(slots, ids)

    monkeypatch.setattr(engine, "extend", watched)
    beam_search(engine, [5, 6, 7], beams=5, max_tokens=10, early_stopping="never")
    assert [1] * 5 in steps and len(steps) <= 10


def test_the_grammar_holds(engine: Engine) -> None:
    words = {"fox", "dog", "brown dog"}
    grammar = compile_choice(sorted(words))
    found = beam_search(engine, [5, 6], beams=8, max_tokens=30, count=8, grammar=grammar)
    assert found and {h.text for h in found if h.reason == "stop"} <= words
    schema = compile_json_schema({"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2})
    for h in beam_search(engine, [5, 6], beams=3, max_tokens=40, count=3, grammar=schema):
        assert h.text in {"[]", "[1]", "[2]", "[1, 1]", "[1, 2]", "[2, 1]", "[2, 2]"}


def test_a_search_leaves_one_slot(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.slots.release(engine.slots.acquire([9, 9])[0])
    for start in range(3):
        beam_search(engine, [5, 6, start], beams=6, max_tokens=9)
    assert not any(slot.busy for slot in engine.slots._slots)
    assert len(engine.slots._slots) <= 4


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"beams": 0}, UsageError),
        ({"beams": 2.5}, UsageError),
        ({"beams": True}, UsageError),
        ({"max_tokens": 0}, UsageError),
        ({"max_tokens": None}, UsageError),
        ({"max_tokens": 100}, ContextOverflow),
        ({"count": 0}, UsageError),
        ({"count": 5}, UsageError),
        ({"length_penalty": float("nan")}, UsageError),
        ({"length_penalty": 1e9}, UsageError),
        ({"length_penalty": "1"}, UsageError),
        ({"early_stopping": "sometimes"}, UsageError),
        ({"grammar": "nonsense"}, UsageError),
    ],
)
def test_what_cannot_be_is_refused(
    engine: Engine, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        beam_search(engine, [5, 6], **{"beams": 4, "max_tokens": 5, **arguments})
    assert "\n" not in str(caught.value)
    assert not any(slot.busy for slot in engine.slots._slots)


def test_an_empty_prompt_and_broken_weights(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(UsageError):
        beam_search(engine, [], beams=2, max_tokens=5)
    with torch.no_grad():
        engine.model.get_parameter("norm.weight").fill_(float("nan"))
    with pytest.raises(TriviumError, match="logits"):
        beam_search(engine, [5], beams=2, max_tokens=5)
    assert not any(slot.busy for slot in engine.slots._slots)
