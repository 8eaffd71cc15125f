"""Scaling laws: the loss as a smooth function of parameters N and data D (tokens).

    L(N, D) = E + A / N^α + B / D^β          (Hoffmann et al. 2022, approach 3)

For given α and β this is linear in (E, A, B), so that least squares solve it in closed form; α and
β are searched on a grid, twice, the second time more finely around the best. Squares are of
relative errors, nearly those of log L. No start has to be guessed, and the result is the same each
time.
Intervals are those of the bootstrap over runs (Efron 1979).

For compute C ≈ 6ND the loss is least at N ∝ C^a with a = β / (α + β).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivium.errors import UsageError

Floats = NDArray[np.float64]
LOW, HIGH = 0.02, 2.0  # of the exponents
GRID, FINE = 48, 24  # points on a side
LEAST = 5  # numbers that the law has


@dataclass(frozen=True)
class Law:
    """E + A / N^α + B / D^β, in nats per token if the losses were."""

    irreducible: float  # E
    a: float  # A
    alpha: float
    b: float  # B
    beta: float

    def __call__(self, parameters: float, tokens: float) -> float:
        return self.irreducible + self.a * parameters**-self.alpha + self.b * tokens**-self.beta

    @property
    def share(self) -> float:
        """a in N ∝ C^a: how a larger budget is to be spent."""
        return self.beta / (self.alpha + self.beta)


@dataclass(frozen=True)
class Fit:
    """The law of all runs, and those of resampled ones."""

    law: Law
    resampled: tuple[Law, ...]

    def interval(self, values: Sequence[float], level: float = 0.9) -> tuple[float, float]:
        """Of what the resampled laws give, in their order."""
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def predict(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """The loss of a run, and its interval (90 %)."""
        low, high = self.interval([law(parameters, tokens) for law in self.resampled])
        return self.law(parameters, tokens), low, high


def fit(
    parameters: Sequence[float],
    tokens: Sequence[float],
    losses: Sequence[float],
    *,
    bootstrap: int = 200,
    seed: int = 0,
) -> Fit:
    """The law of some runs. Raises UsageError for too few, or for losses that are no numbers."""
    n, d, loss = (np.asarray(values, dtype=np.float64) for values in (parameters, tokens, losses))
    if len(set(zip(n, d, strict=True))) <= LEAST or len(set(n)) < 3 or len(set(d)) < 3:
        raise UsageError(
            f"a law of {LEAST} numbers needs more than {LEAST} different runs, with at least three "
            "sizes of the model and three of the data"
        )
    if not (np.isfinite(loss) & (loss > 0)).all():
        raise UsageError("a loss is not a number above zero: that run has failed")
    generator = np.random.default_rng(seed)
    counts = np.vstack([np.ones(len(n)), _resampled(n, d, bootstrap, generator)])
    weights = counts / loss**2
    low, high = np.full(len(counts), LOW), np.full(len(counts), HIGH)
    best = _search(n, d, loss, weights, (low, high), (low, high), GRID)
    step = (HIGH / LOW) ** (1 / (GRID - 1))
    around = [(best[:, i] / step, best[:, i] * step) for i in (0, 1)]
    best = _search(n, d, loss, weights, around[0], around[1], FINE)
    laws = [Law(e, a, alpha, b, beta) for alpha, beta, e, a, b in best.tolist()]
    return Fit(laws[0], tuple(laws[1:]))


def _resampled(n: Floats, d: Floats, times: int, generator: np.random.Generator) -> Floats:
    """How often each run is drawn; only draws in which the law can still be fitted."""
    rows: list[Floats] = []
    while len(rows) < times:
        drawn = generator.integers(len(n), size=len(n))
        if len(set(n[drawn])) >= 2 and len(set(d[drawn])) >= 2 and len(set(drawn)) > LEAST - 1:
            rows.append(np.bincount(drawn, minlength=len(n)).astype(np.float64))
    return np.array(rows)


def _search(
    n: Floats,
    d: Floats,
    loss: Floats,
    weights: Floats,
    alphas: tuple[Floats, Floats],
    betas: tuple[Floats, Floats],
    count: int,
) -> Floats:
    """The best (α, β, E, A, B) of each row of weights (S, runs), over a grid between the ends that
    are given for each."""
    found = np.empty((len(weights), 5))
    for row, weight in enumerate(weights):
        alpha = np.geomspace(alphas[0][row], alphas[1][row], count)
        beta = np.geomspace(betas[0][row], betas[1][row], count)
        found[row] = _best(n, d, loss, weight, alpha, beta)
    return found


def _best(
    n: Floats, d: Floats, loss: Floats, weight: Floats, alphas: Floats, betas: Floats
) -> Floats:
    """Least squares for every pair of exponents at once; none of E, A and B is below zero."""
    # Columns of about the same size: 1, (N/N₀)^−α, (D/D₀)^−β.
    n0, d0 = np.exp(np.log(n).mean()), np.exp(np.log(d).mean())
    x_n = (n / n0)[None] ** -alphas[:, None]  # (α, runs)
    x_d = (d / d0)[None] ** -betas[:, None]  # (β, runs)
    shape = (len(alphas), len(betas), len(n))
    x = np.stack(
        [np.ones(shape), np.broadcast_to(x_n[:, None], shape), np.broadcast_to(x_d[None], shape)],
        axis=-1,
    )  # (α, β, runs, 3)
    best, least = np.zeros(5), np.inf
    for used in (
        (0, 1, 2),
        (1, 2),
        (0, 2),
        (0, 1),
    ):  # with a coefficient at zero, if it wants below
        part = x[..., list(used)]
        weighted = part * weight[:, None]
        normal = np.einsum("abri,abrj->abij", weighted, part)
        normal += 1e-12 * np.trace(normal, axis1=2, axis2=3)[..., None, None] * np.eye(len(used))
        right = weighted.transpose(0, 1, 3, 2) @ loss
        solved = np.linalg.solve(normal, right[..., None])[..., 0]
        error = ((part @ solved[..., None])[..., 0] - loss) ** 2 @ weight
        error = np.where((solved >= 0).all(-1), error, np.inf)
        i, j = np.unravel_index(int(error.argmin()), error.shape)
        if error[i, j] < least:
            least = float(error[i, j])
            numbers = np.zeros(3)
            numbers[list(used)] = solved[i, j]
            e, a, b = numbers
            best = np.array([alphas[i], betas[j], e, a * n0 ** alphas[i], b * d0 ** betas[j]])
    return best
