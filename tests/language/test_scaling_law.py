"""The law that made the losses is found again, with intervals that hold it."""

import numpy as np
import pytest

from trivium.errors import UsageError
from trivium.language.scaling_law import Law, fit

HOFFMANN = Law(1.69, 406.4, 0.34, 410.7, 0.28)
SIZES = [(n, d) for n in (1e7, 1e8, 1e9, 1e10) for d in (1e9, 1e10, 1e11)]


def losses(law: Law, noise: float = 0.0, seed: int = 0) -> list[float]:
    generator = np.random.default_rng(seed)
    return [law(n, d) * (1 + noise * generator.standard_normal()) for n, d in SIZES]


def test_exact_losses_give_the_law_back() -> None:
    """Within what the grid resolves: exponents to 2 %, a loss ten times farther out to 0.2 %."""
    found = fit(*zip(*SIZES, strict=True), losses(HOFFMANN), bootstrap=5).law
    assert found.alpha == pytest.approx(0.34, rel=0.02)
    assert found.beta == pytest.approx(0.28, rel=0.02)
    assert found.irreducible == pytest.approx(1.69, rel=0.02)
    assert found(1e11, 1e12) == pytest.approx(HOFFMANN(1e11, 1e12), rel=2e-3)
    assert found.share == pytest.approx(0.28 / 0.62, rel=0.03)


def test_intervals_hold_the_truth() -> None:
    """Of 12 noisy experiments, 90 % intervals may miss few."""
    held = 0
    for seed in range(12):
        found = fit(*zip(*SIZES, strict=True), losses(HOFFMANN, 0.005, seed), bootstrap=40)
        value, low, high = found.predict(3e10, 3e11)
        assert low <= high and value == pytest.approx(HOFFMANN(3e10, 3e11), rel=0.05)
        held += low <= HOFFMANN(3e10, 3e11) <= high
    assert held >= 8


def test_no_part_is_below_zero() -> None:
    """Losses that do not depend on the data: B is 0, and not a little less."""
    law = Law(1.0, 50.0, 0.3, 0.0, 0.3)
    found = fit(*zip(*SIZES, strict=True), losses(law, 0.002), bootstrap=5).law
    assert found.b >= 0 and found.a > 0 and found.irreducible >= 0
    assert found(1e9, 1e10) == pytest.approx(law(1e9, 1e10), rel=0.01)


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([(1e6, 1e7, 3.0)] * 9, "more than 5 different runs"),
        ([(n, d, 3.0) for n in (1e6, 1e7) for d in (1e7, 1e8, 1e9)], "three sizes of the model"),
        ([(n, d, float("nan")) for n in (1, 2, 3) for d in (1, 2, 3)], "not a number"),
    ],
)
def test_what_cannot_be_fitted(runs: list[tuple[float, float, float]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fit(*zip(*runs, strict=True))
