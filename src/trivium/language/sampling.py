"""From logits to the next token.

The steps and their order are those of transformers' generate(): repetition penalty (Keskar et al.
2019), frequency and presence penalty (OpenAI), temperature, top-k (Fan et al. 2018), top-p
(Holtzman et al. 2020), min-p (Nguyen et al. 2024). Temperature 0 takes the best token.

V vocabulary, K tokens that are still possible.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trivium.errors import TriviumError, UsageError


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
        logits = penalised(logits, sampling, history, prompt)
        best = _best(logits)
        return int((logits == best).nonzero()[0, 0])  # of equals, the lowest id
    ids, weights = _candidates(logits, sampling, history, prompt)
    # One uniform number against the running sum, in double precision and in the order of the ids:
    # the same token for the same seed, whatever the number of threads.
    running = weights.cumsum(0, dtype=torch.float64)
    if generator is None:
        generator = make_generator(sampling.seed)
    point = torch.rand((), dtype=torch.float64, generator=generator) * running[-1]
    place = torch.searchsorted(running, point, right=True)
    last = torch.searchsorted(running, running[-1])  # should rounding lift the point to the end
    return int(ids[torch.minimum(place, last)])


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
    return ids, weights.double() / weights.sum(dtype=torch.float64)


def log_probabilities(logits: Tensor) -> Tensor:
    """log P of every token, float32 (V,): the model's own, before temperature and penalties."""
    _best(logits)
    return torch.log_softmax(logits.float(), dim=-1)


def penalised(
    logits: Tensor, sampling: Sampling, history: Sequence[int], prompt: Sequence[int] = ()
) -> Tensor:
    """The logits after the three penalties, float32 (V,). The input is left as it is."""
    logits = logits.float()
    used = sorted({*history, *prompt}) if sampling.repetition_penalty != 1 else []
    if used:
        ids = torch.tensor(used, device=logits.device)
        values = logits[ids]
        penalty = sampling.repetition_penalty
        values = torch.where(values < 0, values * penalty, values / penalty)
        logits = logits.index_copy(0, ids, values)
    if history and (sampling.frequency_penalty or sampling.presence_penalty):
        made = torch.tensor(list(history), device=logits.device)
        counts = torch.bincount(made, minlength=len(logits)).float()
        logits = logits - counts * sampling.frequency_penalty
        logits = logits - (counts > 0) * sampling.presence_penalty
    return logits


def _best(logits: Tensor) -> float:
    """The greatest logit. Raises TriviumError if there is none."""
    best = float(logits.max())
    if math.isnan(best) or best == math.inf:
        raise TriviumError(
            f"the model's logits hold {best}: its weights are broken, or its precision is too low "
            "(try float32)"
        )
    if best == -math.inf:
        raise TriviumError("no token is possible: all logits are minus infinity")
    return best


def _candidates(
    logits: Tensor, sampling: Sampling, history: Sequence[int], prompt: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """ids (K,) ascending and their weights (K,), not normalised; both on the CPU."""
    logits = penalised(logits, sampling, history, prompt)
    # Relative to the best one, so that no temperature overflows; its weight is e⁰ = 1.
    logits = (logits - _best(logits)) / sampling.temperature
    least = -math.inf
    if 0 < sampling.top_k < len(logits):
        least = float(torch.topk(logits, sampling.top_k).values[-1])
    if sampling.top_p == 1 and sampling.min_p > 0:
        least = max(least, math.log(sampling.min_p))
    ids, weights = torch.arange(len(logits)), logits.exp().cpu()
    if least > -math.inf:
        ids = (logits >= least).nonzero().squeeze(1).cpu()
        weights = weights[ids]
    if sampling.top_p < 1:
        chosen = _nucleus(weights, sampling.top_p)
        ids, weights = ids[chosen], weights[chosen]
        probable = weights >= sampling.min_p
        ids, weights = ids[probable], weights[probable]
    return ids, weights


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Indices, ascending, of the fewest best tokens whose share of the weight reaches `top_p`.

    Of equal tokens the earlier counts as better.
    """
    total = float(weights.sum(dtype=torch.float64))
    # Together, the tokens below this weigh less than the share that is cut off: none can be in.
    index = (weights >= 0.999 * (1 - top_p) * total / len(weights)).nonzero().squeeze(1)
    best_first, order = weights[index].double().sort(descending=True, stable=True)
    better = best_first.cumsum(0) - best_first  # the weight of all better tokens
    count = max(int((better < top_p * total).sum()), 1)
    return index[order[:count]].sort().values
