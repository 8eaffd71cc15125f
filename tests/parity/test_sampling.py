"""The same distributions as transformers' logits processors, in generate()'s order."""

import itertools

import pytest
import torch

from trivium.language.sampling import Sampling, distribution

transformers = pytest.importorskip("transformers")

LIMITS = [
    {"top_k": k, "top_p": p, "min_p": m}
    for k, p, m in itertools.product([0, 1, 7, 50], [1.0, 0.9, 0.3], [0.0, 0.02, 0.3])
]


def reference(logits: torch.Tensor, sampling: Sampling, ids: list[int]) -> torch.Tensor:
    """Probabilities (V,) by transformers' classes."""
    t = transformers
    steps = []
    if sampling.repetition_penalty != 1:
        steps.append(t.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    steps.append(t.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        steps.append(t.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(t.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        steps.append(t.MinPLogitsWarper(sampling.min_p))
    scores = t.LogitsProcessorList(steps)(torch.tensor([ids]), logits[None].clone())
    return scores[0].double().softmax(0)


@pytest.mark.parametrize("size", [64, 49_152])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("limits", LIMITS, ids=lambda limits: "-".join(map(str, limits.values())))
def test_the_distribution_is_that_of_transformers(
    size: int, temperature: float, limits: dict[str, float]
) -> None:
    generator = torch.Generator().manual_seed(size)
    for spread, penalty in ((1.0, 1.0), (4.0, 1.3), (8.0, 0.8)):
        logits = spread * torch.randn(size, generator=generator)
        history = torch.randint(0, size, (40,), generator=generator).tolist()
        sampling = Sampling(temperature, repetition_penalty=penalty, **limits)  # type: ignore[arg-type]
        ids, probabilities = distribution(logits, sampling, history[20:], history[:20])
        ours = torch.zeros(size, dtype=torch.float64).index_put((ids,), probabilities)
        theirs = reference(logits, sampling, history)
        assert float((ours - theirs).abs().max()) < 1e-6
        # The same tokens are possible, but for one whose place is decided by rounding.
        differ = (ours > 1e-30) != (theirs > 1e-30)
        assert int(differ.sum()) <= (0 if size == 64 else 2)
