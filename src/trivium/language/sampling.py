"""From logits to the next token.

The steps and their order are those of transformers' generate(): repetition penalty (Keskar et al.
2019), frequency and presence penalty (OpenAI), temperature, top-k (Fan et al. 2018), top-p
(Holtzman et al. 2020), min-p (Nguyen et al. 2024). Temperature 0 takes the best token.

The work is done in NumPy: a row of logits fits into a core's cache, and its operations start in a
tenth of the time of PyTorch's, which counts where sixteen rows are drawn from after every step.

V vocabulary, K tokens that are still possible.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trivium.errors import TriviumError, UsageError

BLOCK = 512  # weights
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    temperature         0 takes the best token; below 1 sharpens, above 1 flattens
    top_k               keep the k best tokens; 0 keeps all
    top_p               keep the fewest best tokens whose probabilities sum to at least this
    min_p               keep tokens at least this fraction as probable as the best one
    repetition_penalty  divide (or, below zero, multiply) the logits of tokens already in the text
    frequency_penalty   subtract this for each time the answer has used a token
    presence_penalty    subtract this once if the answer has used a token
    seed                makes the draw repeatable; None draws anew each time
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, math.inf)
        _check("top_k", self.top_k, 0, math.inf, whole=True)
        _check("top_p", self.top_p, 0, 1)
        _check("min_p", self.min_p, 0, 1)
        _check("repetition_penalty", self.repetition_penalty, 0, math.inf)
        if self.repetition_penalty == 0:
            raise UsageError("repetition_penalty must be above 0; 1 means none")
        _check("frequency_penalty", self.frequency_penalty, -math.inf, math.inf)
        _check("presence_penalty", self.presence_penalty, -math.inf, math.inf)
        if self.seed is not None:
            _check("seed", self.seed, 0, 2**63 - 1, whole=True)


def _check(name: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    kind = "a whole number" if whole else "a number"
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right or not math.isfinite(value) or not low <= value <= high:  # type: ignore[operator, arg-type]
        bounds = "" if low == -math.inf else f" of at least {low}"
        bounds = f" from {low} to {high}" if high < math.inf else bounds
        raise UsageError(f"{name} must be {kind}{bounds}, not {value!r}")


def make_generator(seed: int | None) -> torch.Generator:
    """The source of chance for one answer. It lives on the CPU, so that devices agree."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def next_token(
    logits: Tensor,
    sampling: Sampling,
    history: Sequence[int] = (),
    generator: torch.Generator | None = None,
    *,
    prompt: Sequence[int] = (),
) -> int:
    """Draw a token. logits: (V,).

    history: the tokens of the answer so far, on which the penalties depend
    prompt: the tokens before it, which the repetition penalty counts too
    generator: the source of chance; None is a fresh one of `sampling.seed`

    Raises TriviumError for logits that hold NaN or leave no token possible.
    """
    if sampling.temperature == 0:
        scores = penalised(logits, sampling, history, prompt)
        best = int(scores.argmax())  # of equals, the lowest id; NaN counts as the greatest
        _check_best(scores[best])
        return best
    ids, weights = _candidates(logits, sampling, history, prompt)
    if generator is None:
        generator = make_generator(sampling.seed)
    share = float(torch.rand((), dtype=torch.float64, generator=generator))
    return int(ids[_place(weights, share)])


def distribution(
    logits: Tensor,
    sampling: Sampling,
    history: Sequence[int] = (),
    prompt: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """The tokens that may be drawn and their probabilities: ids (K,) ascending, float64 (K,)."""
    if sampling.temperature == 0:
        best = next_token(logits, sampling, history, prompt=prompt)
        return torch.tensor([best]), torch.ones(1, dtype=torch.float64)
    ids, weights = _candidates(logits, sampling, history, prompt)
    shares = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    return torch.from_numpy(ids), torch.from_numpy(shares)


def log_probabilities(logits: Tensor) -> Tensor:
    """log P of every token, float32 (V,): the model's own, before temperature and penalties."""
    _check_best(float(logits.max()))
    return torch.log_softmax(logits.float(), dim=-1)


def biased(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """The logits (V,) with `bias` added to some tokens'. The input is left as it is."""
    if not bias:
        return logits
    ids = torch.tensor(list(bias), device=logits.device)
    values = torch.tensor(list(bias.values()), device=logits.device, dtype=logits.dtype)
    return logits.index_add(0, ids, values)


def penalised(
    logits: Tensor, sampling: Sampling, history: Sequence[int], prompt: Sequence[int] = ()
) -> NDArray[np.float32]:
    """The logits after the three penalties, float32 (V,). The input is left as it is."""
    scores: NDArray[np.float32] = logits.detach().float().cpu().numpy()
    repeated = sampling.repetition_penalty != 1 and bool(history or prompt)
    counted = bool(history and (sampling.frequency_penalty or sampling.presence_penalty))
    if repeated or counted:
        scores = scores.copy()
    if repeated:
        used = np.fromiter({*history, *prompt}, np.int64)
        penalty = np.float32(sampling.repetition_penalty)
        values = scores[used]
        scores[used] = np.where(values < 0, values * penalty, values / penalty)
    if counted:
        made, counts = np.unique(np.array(history, np.int64), return_counts=True)
        scores[made] -= counts.astype(np.float32) * np.float32(sampling.frequency_penalty)
        scores[made] -= np.float32(sampling.presence_penalty)
    return scores


def _check_best(best: float) -> None:
    """Raises TriviumError where the greatest logit is none."""
    if math.isnan(best) or best == math.inf:
        raise TriviumError(
            f"the model's logits hold {float(best)}: its weights are broken, or its precision is "
            "too low (try float32)"
        )
    if best == -math.inf:
        raise TriviumError("no token is possible: all logits are minus infinity")


def _candidates(
    logits: Tensor, sampling: Sampling, history: Sequence[int], prompt: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """ids (K,) ascending and their weights (K,), not normalised."""
    scores = penalised(logits, sampling, history, prompt)
    best = scores.max()
    _check_best(best)
    # Relative to the best one, so that no temperature overflows; its weight is e⁰ = 1.
    with np.errstate(over="ignore"):  # far below it a cold score is minus infinity
        scores = (scores - best) / np.float32(max(sampling.temperature, TINY))
    least = -math.inf
    if 0 < sampling.top_k < len(scores):
        least = float(torch.topk(torch.from_numpy(scores), sampling.top_k).values[-1])
    if sampling.top_p == 1 and sampling.min_p > 0:
        least = max(least, math.log(sampling.min_p))
    if least > -math.inf:
        ids = np.flatnonzero(scores >= np.float32(least))
        weights = np.exp(scores[ids])
    else:
        ids, weights = np.arange(len(scores)), np.exp(scores)
    if sampling.top_p < 1:
        chosen = _nucleus(weights, sampling.top_p)
        ids, weights = ids[chosen], weights[chosen]
        probable = weights >= sampling.min_p
        ids, weights = ids[probable], weights[probable]
    return ids, weights


def _place(weights: NDArray[np.float32], share: float) -> int:
    """Where the running sum of `weights`, in double precision, passes `share` (below 1) of it all.

    The sum goes over blocks and then within one of them, which is several times faster.
    """
    starts = np.arange(0, len(weights), BLOCK)
    sums = np.add.reduceat(weights, starts, dtype=np.float64)
    running = sums.cumsum()
    point = share * running[-1]
    block = _first_above(running, point)
    inside = weights[starts[block] : starts[block] + BLOCK].cumsum(dtype=np.float64)
    return int(starts[block]) + _first_above(inside, point - (running[block] - sums[block]))


def _first_above(running: NDArray[np.float64], point: float) -> int:
    """The first place whose sum is above `point`; the last that adds to it, should rounding lift
    the point to the end."""
    return int(min(running.searchsorted(point, side="right"), running.searchsorted(running[-1])))


def _nucleus(weights: NDArray[np.float32], top_p: float) -> NDArray[np.int64]:
    """Indices, ascending, of the fewest best tokens whose share of the weight reaches `top_p`.

    Of equal tokens the earlier counts as better.
    """
    total = float(weights.sum(dtype=np.float64))
    # Together, the tokens below this weigh less than the share that is cut off: none can be in.
    index = np.flatnonzero(weights >= 0.999 * (1 - top_p) * total / len(weights))
    kept = weights[index].astype(np.float64)
    for bound in (0.1, 0.01, 0.001):  # of the best; where few weigh enough, only few are sorted
        heavy = kept >= bound
        if kept[heavy].sum() > (1 + 1e-9) * top_p * total:
            index, kept = index[heavy], kept[heavy]
            break
    order = np.argsort(-kept, kind="stable")
    best_first = kept[order]
    better = best_first.cumsum() - best_first  # the weight of all better tokens
    count = max(int((better < top_p * total).sum()), 1)
    return np.sort(index[order[:count]])
