import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.errors import TriviumError, UsageError
from trivium.language.sampling import (
    Sampling,
    biased,
    distribution,
    log_probabilities,
    make_generator,
    next_token,
)

INF, NAN = math.inf, math.nan


def logits_of(size: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def draws(logits: torch.Tensor, sampling: Sampling, count: int) -> Iterator[int]:
    generator = make_generator(sampling.seed)
    for _ in range(count):
        yield next_token(logits, sampling, generator=generator)


# -- greedy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 1000, 100_000])
def test_greedy_takes_the_best_and_of_equals_the_lowest_id(size: int) -> None:
    logits = torch.zeros(size)
    assert next_token(logits, Sampling()) == 0
    logits[[size - 1, size - 2]] = 1.0
    assert next_token(logits, Sampling()) == size - 2


def test_greedy_is_the_limit_of_low_temperature() -> None:
    logits = logits_of(500)
    assert set(draws(logits, Sampling(temperature=1e-30), 20)) == {next_token(logits, Sampling())}


def test_penalties_also_steer_greedy_choice() -> None:
    logits = torch.tensor([3.0, 2.0, -1.0])
    assert next_token(logits, Sampling(repetition_penalty=2.0), [0]) == 1
    assert next_token(logits, Sampling(repetition_penalty=2.0), prompt=[0]) == 1
    assert next_token(logits, Sampling(presence_penalty=1.5), [0]) == 1
    assert next_token(logits, Sampling(frequency_penalty=0.6), [0]) == 0
    assert next_token(logits, Sampling(frequency_penalty=0.6), [0, 0]) == 1
    assert next_token(logits, Sampling(presence_penalty=1.5), prompt=[0]) == 0  # answer only


def test_bias_is_added_to_a_copy() -> None:
    logits = torch.tensor([3.0, 2.0, -1.0])
    assert biased(logits, {1: 1.5, 2: -1.0}).tolist() == [3.0, 3.5, -2.0]
    assert logits.tolist() == [3.0, 2.0, -1.0]
    assert biased(logits, {}) is logits


@given(st.lists(st.integers(0, 9), max_size=30), st.floats(-2, 2), st.floats(-2, 2))
@settings(deadline=None)
def test_frequency_and_presence_follow_the_formula(
    history: list[int], frequency: float, presence: float
) -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, as OpenAI documents it."""
    logits = logits_of(10)
    sampling = Sampling(temperature=1, frequency_penalty=frequency, presence_penalty=presence)
    counts = [history.count(j) for j in range(10)]
    expected = [float(logits[j]) - c * frequency - (c > 0) * presence for j, c in enumerate(counts)]
    ids, probabilities = distribution(logits, sampling, history)
    assert ids.tolist() == list(range(10))
    torch.testing.assert_close(
        probabilities, torch.tensor(expected, dtype=torch.float64).softmax(0), atol=1e-6, rtol=0
    )


# -- what may be drawn --------------------------------------------------------------------------


@given(
    st.integers(2, 300),
    st.integers(0, 50),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([0.1, 0.7, 1.0, 3.0]),
)
@settings(deadline=None)
def test_drawn_tokens_are_those_of_the_distribution(
    size: int, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    logits = logits_of(size, seed=size)
    sampling = Sampling(temperature, top_k, top_p, min_p, seed=1)
    ids, probabilities = distribution(logits, sampling)
    assert len(ids) >= 1 and int(logits.argmax()) in ids
    assert ids.tolist() == sorted(set(ids.tolist()))
    assert abs(float(probabilities.sum()) - 1) < 1e-6
    assert set(draws(logits, sampling, 30)) <= set(ids.tolist())
    if top_k:
        assert len(ids) <= top_k
    full = (logits.double() / temperature).softmax(0)
    if not top_k and not min_p:
        # The fewest that reach top_p: they do, and without the least of them they would not.
        kept = full[ids]
        assert float(kept.sum()) >= top_p - 1e-6
        assert len(ids) == 1 or float(kept.sum() - kept.min()) < top_p + 1e-6
    if not top_k and top_p == 1:
        assert set((full >= min_p * full.max() * (1 + 1e-5)).nonzero().flatten().tolist()) <= set(
            ids.tolist()
        )


def test_frequencies_of_draws_are_the_probabilities() -> None:
    logits = torch.tensor([1.0, 0.0, 2.0, -INF, 1.5])
    sampling = Sampling(temperature=1.3, seed=5)
    counts = torch.bincount(torch.tensor(list(draws(logits, sampling, 20_000))), minlength=5)
    expected = 20_000 * (logits / 1.3).softmax(0)
    assert counts[3] == 0
    chi2 = ((counts - expected) ** 2 / expected.clamp(min=1)).sum()
    assert chi2 < 21.1  # 3 degrees of freedom, p = 0.0001; the seed is fixed


@pytest.mark.parametrize("temperature", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("limits", [{}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}])
def test_a_masked_token_is_never_drawn(temperature: float, limits: dict[str, float]) -> None:
    logits = torch.full((1000,), -INF)
    logits[[7, 500]] = torch.tensor([0.0, -1.0])
    sampling = Sampling(temperature=temperature, seed=0, **limits)  # type: ignore[arg-type]
    assert set(draws(logits, sampling, 200)) <= {7, 500}


def test_equal_logits_are_cut_the_same_way_every_time() -> None:
    logits = torch.zeros(10_000)
    ids, _ = distribution(logits, Sampling(temperature=1, top_p=0.25))
    assert ids.tolist() == list(range(2500))
    ids, _ = distribution(logits, Sampling(temperature=1, top_k=3))
    assert len(ids) == 10_000  # as in transformers, equals of the k-th stay


def test_top_p_of_nothing_keeps_the_best() -> None:
    logits = logits_of(50)
    ids, _ = distribution(logits, Sampling(temperature=1, top_p=0.0))
    assert ids.tolist() == [int(logits.argmax())]


def test_the_input_is_left_as_it_is_and_may_be_half_precision() -> None:
    logits = logits_of(100).bfloat16()
    before = logits.clone()
    sampling = Sampling(0.8, 10, 0.9, 0.01, 1.2, 0.1, 0.1, seed=3)
    next_token(logits, sampling, [1, 2, 3], prompt=[4, 5])
    assert torch.equal(logits, before)


# -- seeds --------------------------------------------------------------------------------------


def test_a_seed_repeats_the_draw_whatever_the_number_of_threads() -> None:
    logits = logits_of(60_000)
    cases = [Sampling(1.0, seed=9), Sampling(1.0, top_p=0.95, seed=9), Sampling(1.0, 40, seed=9)]
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            results.append([list(draws(logits, sampling, 50)) for sampling in cases])
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1] == results[2]
    assert len(set(results[0][0])) > 10


def test_without_a_seed_draws_differ() -> None:
    logits = torch.zeros(1000)
    sampling = Sampling(temperature=1)
    assert len({next_token(logits, sampling) for _ in range(10)}) > 1
    assert next_token(logits, Sampling(1, seed=4)) == next_token(logits, Sampling(1, seed=4))


# -- wrong values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -0.1, "temperature must be a number of at least 0, not -0.1"),
        ("temperature", NAN, "temperature must be a number"),
        ("temperature", INF, "temperature must be a number"),
        ("temperature", "0.7", "not '0.7'"),
        ("temperature", True, "not True"),
        ("top_k", -1, "top_k must be a whole number of at least 0, not -1"),
        ("top_k", 1.5, "top_k must be a whole number"),
        ("top_p", 1.01, "top_p must be a number from 0 to 1, not 1.01"),
        ("min_p", -1, "min_p must be a number from 0 to 1, not -1"),
        ("repetition_penalty", 0, "repetition_penalty must be above 0"),
        ("frequency_penalty", NAN, "frequency_penalty must be a number, not nan"),
        ("presence_penalty", None, "presence_penalty must be a number, not None"),
        ("seed", -1, "seed must be a whole number from 0"),
        ("seed", 2**63, "seed must be a whole number from 0"),
    ],
)
def test_a_wrong_value_is_named(field: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ([0.0, NAN, 1.0], "logits hold nan"),
        ([0.0, INF], "logits hold inf"),
        ([-INF, -INF], "no token is possible"),
    ],
)
def test_broken_logits_are_an_error(logits: list[float], message: str, temperature: float) -> None:
    with pytest.raises(TriviumError, match=message):
        next_token(torch.tensor(logits), Sampling(temperature=temperature))


# -- log-probabilities --------------------------------------------------------------------------


def test_log_probabilities_are_those_of_the_model() -> None:
    logits = torch.tensor([0.0, math.log(3.0), -INF])
    expected = [math.log(0.25), math.log(0.75), -INF]
    assert log_probabilities(logits).tolist() == pytest.approx(expected)
    with pytest.raises(TriviumError, match="nan"):
        log_probabilities(torch.tensor([NAN]))
