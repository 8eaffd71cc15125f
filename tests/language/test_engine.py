"""The engine on a tiny random model with a tokenizer trained in the test."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.errors import UsageError
from trivium.language.constrain import compile_choice, compile_json_schema, compile_regex
from trivium.language.engine import ContextOverflow, Engine
from trivium.language.generation import End, Request, Run, Token
from trivium.language.sampling import Sampling
from trivium.language.slots import common_prefix
from trivium.nn.attention import KVCache

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def engine(make_engine: MakeEngine) -> Engine:
    return make_engine()


def generate(engine: Engine, request: Request) -> tuple[list[int], str, End]:
    *tokens, end = engine.generate(request)
    assert isinstance(end, End)
    ids = [token.id for token in tokens if isinstance(token, Token)]
    return ids, "".join(piece.text for piece in (*tokens, end)), end


def greedy(engine: Engine, prompt: Sequence[int], count: int) -> list[int]:
    """Token by token, everything computed anew each time."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            best = int(engine.model(torch.tensor([ids]))[0, -1].argmax())
        if best in engine.tokenizer.stop_ids:
            break
        ids.append(best)
    return ids[len(prompt) :]


prompts = st.lists(st.integers(3, 300), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(st.lists(prompts, min_size=1, max_size=6), st.integers(0, 40))
def test_the_cache_changes_nothing(engine: Engine, sequence: list[list[int]], kept: int) -> None:
    """Whatever was computed before, with whatever shared beginnings, the tokens are the same."""
    previous: list[int] = []
    for tail in sequence:
        prompt = (previous[:kept] + tail)[:60]
        ids, _, end = generate(engine, Request(prompt, max_tokens=6))
        assert ids == greedy(engine, prompt, 6)
        assert end.cached_tokens < len(prompt)
        previous = prompt + ids


def test_the_second_turn_does_not_pay_for_the_first(make_engine: MakeEngine) -> None:
    engine = make_engine()
    first = list(range(10, 60))
    ids, _, end = generate(engine, Request(first, max_tokens=5))
    assert end.cached_tokens == 0
    _, _, end = generate(engine, Request(first + ids + [7, 8, 9], max_tokens=5))
    # The last token of the answer was made, but never read.
    assert end.cached_tokens >= len(first) + len(ids) - 1


def test_conversations_do_not_evict_each_other(make_engine: MakeEngine) -> None:
    engine = make_engine()
    talks = [[start] * 20 for start in (11, 12, 13)]
    for talk in talks:
        generate(engine, Request(talk, max_tokens=2))
    for talk in talks:
        assert generate(engine, Request([*talk, 5], max_tokens=2))[2].cached_tokens >= 19


def test_samples_of_one_prompt_compute_it_once(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They read it in turns, a chunk at a time; each copies what the one before has computed."""
    engine, prompt = make_engine(), list(range(10, 80))
    engine.chunk = 16
    computed, update = [], KVCache.update

    def counted(cache: KVCache, layer: int, k: torch.Tensor, v: torch.Tensor) -> object:
        computed.extend([k.shape[2]] * (layer == 0))
        return update(cache, layer, k, v)

    monkeypatch.setattr(KVCache, "update", counted)
    runs = [Run(engine, Request(prompt, Sampling(1.0, seed=i), max_tokens=9)) for i in range(6)]
    waiting = list(runs)
    while waiting:
        waiting = [run for run in waiting if not run.read_prompt()]
    assert sum(computed) < len(prompt) + len(runs)
    for i, run in enumerate(runs):
        while not run.ended:
            *_, event = run.choose()
            if not run.ended:
                engine.advance([run])
        assert isinstance(event, End)
        assert i == 0 or event.cached_tokens > 0
        assert run.made == generate(make_engine(), run._request)[0] or event.reason == "stop"
        run.close()


def test_closing_the_stream_keeps_the_cache_sound(engine: Engine) -> None:
    prompt = [40, 41, 42, 43]
    stream = engine.generate(Request(prompt, max_tokens=20))
    list(itertools.islice(stream, 3))
    stream.close()  # type: ignore[attr-defined]
    assert generate(engine, Request(prompt, max_tokens=8))[0] == greedy(engine, prompt, 8)


def test_an_interrupted_step_keeps_the_cache_sound(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    prompt = [40, 41, 42, 43]
    expected = generate(engine, Request(prompt, max_tokens=8))[0]
    last = engine.model.layers[-1]
    calls = itertools.count()
    forward = type(last).forward

    def interrupted(self: torch.nn.Module, *arguments: object) -> object:
        if self is last and next(calls) == 2:
            raise KeyboardInterrupt
        return forward(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(last), "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(engine.generate(Request([*prompt, 9, 9], max_tokens=8)))
    assert generate(engine, Request(prompt, max_tokens=8))[0] == expected


def test_streamed_text_is_the_decoded_text(engine: Engine) -> None:
    for seed in range(10):
        request = Request([50, 60], Sampling(temperature=1.5, seed=seed), max_tokens=40)
        ids, text, end = generate(engine, request)
        assert text == engine.tokenizer.decode(ids)
        assert end.completion_tokens == len(ids) + (end.reason == "stop")


def test_the_seed_decides(engine: Engine) -> None:
    def once(seed: int) -> list[int]:
        request = Request([50, 60], Sampling(temperature=1.0, seed=seed), max_tokens=20)
        return generate(engine, request)[0]

    assert once(1) == once(1)
    assert len({tuple(once(seed)) for seed in range(5)}) > 1


def test_stop_strings_cut_the_text(engine: Engine) -> None:
    _, whole, _ = generate(engine, Request([50, 60], max_tokens=30))
    stop = whole[7:11]
    _, text, end = generate(engine, Request([50, 60], max_tokens=30, stop=[stop]))
    assert text == whole[: whole.index(stop)] and end.reason == "stop"


def test_what_was_held_back_for_a_stop_string_comes_at_the_end(engine: Engine) -> None:
    _, whole, _ = generate(engine, Request([50, 60], max_tokens=10))
    _, text, end = generate(engine, Request([50, 60], max_tokens=10, stop=[whole[-2:] + "@"]))
    assert text == whole and end.reason == "length"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("grammar", "allowed"),
    [
        (compile_choice(["yes", "no", "可能"]), {"yes", "no", "可能"}),
        (compile_regex("(ab)?c"), {"abc", "c"}),
        (compile_json_schema({"enum": [1, "x", None]}), {"1", '"x"', "null"}),
    ],
)
def test_grammars_hold(engine: Engine, grammar: str, allowed: set[str], temperature: float) -> None:
    for seed in range(5):
        sampling = Sampling(temperature=temperature, seed=seed)
        _, text, end = generate(engine, Request([50], sampling, max_tokens=30, grammar=grammar))
        assert text in allowed and end.reason == "stop"


def test_log_probabilities(engine: Engine) -> None:
    prompt = [50, 60, 70]
    *tokens, _ = engine.generate(Request(prompt, max_tokens=5, top_logprobs=3))
    ids = list(prompt)
    for token in tokens:
        assert isinstance(token, Token) and token.logprob is not None
        with torch.no_grad():
            expected = engine.model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-4)
        assert [i for i, _ in token.top] == expected.topk(3).indices.tolist()
        ids.append(token.id)


def test_score_equals_the_whole_text_at_once(engine: Engine) -> None:
    prompt, continuations = [50, 60, 70], [[5], [6, 7, 8], [6, 9]]
    for scores, continuation in zip(
        engine.score(prompt, continuations), continuations, strict=True
    ):
        with torch.no_grad():
            logits = engine.model(torch.tensor([prompt + continuation]))[0].log_softmax(-1)
        expected = [float(logits[len(prompt) + i - 1, t]) for i, t in enumerate(continuation)]
        assert scores == pytest.approx(expected, abs=1e-4)


def test_features_do_not_depend_on_the_batch(engine: Engine) -> None:
    texts = ["fox", "the lazy dog jumps", "", "quick brown"]
    together = engine.features(texts, [0, 1], before="the ", after=" dog")
    for text, row in zip(texts, together, strict=True):
        alone = engine.features([text], [0, 1], before="the ", after=" dog")[0]
        torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "error"),
    [
        ([], 5, UsageError),
        ([5] * 96, None, ContextOverflow),
        ([5] * 90, 7, ContextOverflow),
        ([5] * 100_000, 1, ContextOverflow),
    ],
)
def test_what_does_not_fit_is_refused(
    engine: Engine, prompt: list[int], max_tokens: int | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        list(engine.generate(Request(prompt, max_tokens=max_tokens)))


def test_the_context_can_be_filled_to_the_brim(engine: Engine) -> None:
    ids, _, end = generate(engine, Request([5] * 90, Sampling(1.0, seed=3)))
    assert len(ids) == 6 and end.reason == "length" or end.reason == "stop"


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix(a: list[int], b: list[int]) -> None:
    n = common_prefix(a, b)
    assert a[:n] == b[:n] and (n in (len(a), len(b)) or a[n] != b[n])
