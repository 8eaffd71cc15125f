"""From counts to probabilities: what an n-gram that was never seen gets.

    c(h w)  how often token w followed the n − 1 tokens h       c(h) = Σ_w c(h w)
    h'      h without its first token                           V    tokens that can follow

    add-k             (c(h w) + k) / (c(h) + k V)            Lidstone; k = 1: Laplace, "add-one"
    Jelinek–Mercer    λ_n c(h w)/c(h) + (1 − λ_n) P(w|h')    interpolated (1980)
    Katz              d_c c(h w)/c(h), else α(h) P(w|h')     Good–Turing's d_c (1987)
    stupid back-off   c(h w)/c(h), else 0.4 S(w|h')          Brants et al. 2007
    Kneser–Ney        max(a(h w) − D, 0)/a(h) + γ(h) P(w|h') interpolated (1995)
    modified K.–N.    the same; D is D₁, D₂ or D₃₊           by a(h w): Chen & Goodman 1999

    a is c for the longest h, else the number of different tokens seen before h w.

All but stupid back-off sum to 1 over w. The shortest context is interpolated with the uniform
distribution, so that no token is impossible. An n-gram that begins a document has nothing before
it: there a = c, as in KenLM.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trivium.errors import UsageError
from trivium.language.ngram import Level, NGram
from trivium.language.ngram_counts import Array, Counts, before

FALLBACK = (0.5, 1.0, 1.5)  # discounts where a text is too small to estimate them, as in KenLM
KATZ_RELIABLE = 5  # counts above this are not discounted
TINY = 1e-12


def add_k(counts: Counts, k: float = 1.0) -> NGram:
    """Only the longest context is used."""
    if not 0 < k < np.inf:
        raise UsageError(f"k is above 0, not {k}")
    order, many = counts.trie.order, _many(counts)
    top, totals = _unigrams_or_top(counts)
    weight = k * many / (totals + k * many)
    if order == 1:
        probability = (top + k) / (totals + k * many)
        levels = [_words(counts, probability)]
    else:
        parents = counts.trie.parents(order)
        levels = [_words(counts, np.full(counts.trie.vocab_size, 1 / many))]
        levels += [(np.full(size, 1 / many), None) for size in counts.trie.sizes[1:-1]]
        levels.append(((top + k) / (totals + k * many)[parents], None))
        levels[-2] = (levels[-2][0], weight)
    return _model(counts, levels, f"add-{k:g}", {"k": k})


def stupid_backoff(counts: Counts, alpha: float = 0.4) -> NGram:
    if not 0 < alpha <= 1:
        raise UsageError(f"alpha is above 0 and at most 1, not {alpha}")
    unigrams, total = _unigrams(counts)
    levels: list[tuple[Array, Array | None]] = [(unigrams / total, None)]
    for n in range(2, counts.trie.order + 1):
        share, totals = _shares(counts, n)
        levels[-1] = (levels[-1][0], np.full(len(totals), alpha))
        levels.append((share, None))
    return _model(counts, levels, "stupid back-off", {"alpha": alpha}, unseen=alpha)


def jelinek_mercer(counts: Counts, weights: Sequence[float]) -> NGram:
    """weights: λ_1 … λ_N, each from 0 up to, but without, 1; see `held_out_weights`."""
    if len(weights) != counts.trie.order or not all(0 <= weight < 1 for weight in weights):
        raise UsageError(f"{counts.trie.order} weights from 0 to below 1 are needed, not {weights}")
    unigrams, total = _unigrams(counts)
    uniform = (1 - weights[0]) / _many(counts)
    levels = [_words(counts, weights[0] * unigrams / total + uniform)]
    links = counts.trie.suffixes()
    for n, weight in enumerate(weights[1:], start=2):
        share, totals = _shares(counts, n)
        lower = levels[-1][0]
        levels[-1] = (lower, np.where(totals > 0, 1 - weight, 1.0))
        levels.append((weight * share + (1 - weight) * lower[links[n - 1]], None))
    settings = {"weights": [round(float(w), 6) for w in weights]}
    return _model(counts, levels, "Jelinek-Mercer", settings)


def held_out_weights(
    counts: Counts, documents: Iterable[Sequence[int] | Array], *, rounds: int = 20
) -> list[float]:
    """The λ that make held-out documents likeliest, by expectation maximisation."""
    shares, seen = _held_out_shares(counts, documents)
    weights = np.full(counts.trie.order, 0.5)
    for _ in range(rounds):
        p, mixed = np.full(shares.shape[1], 1 / _many(counts)), []
        for n, weight in enumerate(weights):
            p = np.where(seen[n], weight * shares[n] + (1 - weight) * p, p)
            mixed.append(p)
        reached = np.ones(shares.shape[1])  # the probability that P came from here or below
        for n in range(counts.trie.order - 1, -1, -1):
            stayed = np.where(seen[n], reached * weights[n] * shares[n] / mixed[n], 0)
            whole = reached[seen[n]].sum()
            weights[n] = stayed.sum() / whole if whole > 0 else 0.0
            reached = reached - stayed
        weights = weights.clip(0, 1 - 1e-6)
    return [float(weight) for weight in weights]


def _held_out_shares(
    counts: Counts, documents: Iterable[Sequence[int] | Array]
) -> tuple[Array, Array]:
    """c(h w)/c(h) of each token for each order, and whether h was seen: (N, T) each."""
    trie = counts.trie
    totals = [np.array([_unigrams(counts)[1]], np.float64)]
    totals += [trie.totals(n, counts.counts[n - 1]) for n in range(2, trie.order + 1)]
    shares, seen = [], []
    for document in documents:
        ids = np.asarray(document, np.int64)
        nodes = trie.walk(ids)
        contexts = [np.zeros(len(ids), np.int64), *(before(node) for node in nodes[:-1])]
        scored = ids != counts.begin if counts.begin is not None else np.ones(len(ids), bool)
        rows = []
        for n in range(trie.order):
            total = np.where(contexts[n] >= 0, totals[n][contexts[n]], 0)
            own = counts.counts[n]
            many = np.where(nodes[n] >= 0, own[nodes[n]] if len(own) else 0, 0)
            rows.append((np.where(total > 0, many / np.maximum(total, 1), 0), total > 0))
        shares.append(np.stack([share for share, _ in rows])[:, scored])
        seen.append(np.stack([known for _, known in rows])[:, scored])
    if not shares or not sum(share.shape[1] for share in shares):
        raise UsageError("there is no held-out text to fit the weights on")
    return np.concatenate(shares, axis=1), np.concatenate(seen, axis=1)


def katz(counts: Counts, reliable: int = KATZ_RELIABLE) -> NGram:
    """Counts up to `reliable` are discounted by Good and Turing's estimate."""
    unigrams, _ = _unigrams(counts)
    share = _good_turing(unigrams, reliable) * unigrams
    total, unseen = unigrams.sum(), _predicted(counts) & (unigrams == 0)
    left = 1 - share.sum() / total
    p = share / total if unseen.any() and left > TINY else share / share.sum()
    if unseen.any() and left <= TINY:  # nothing was discounted: one occurrence for the unseen
        p, left = unigrams / (total + 1), 1 / (total + 1)
    levels: list[tuple[Array, Array | None]] = [
        (np.where(unseen, left / max(unseen.sum(), 1), p), None)
    ]
    links = counts.trie.suffixes()
    for n in range(2, counts.trie.order + 1):
        lower, parents = levels[-1][0], counts.trie.parents(n)
        own = counts.counts[n - 1].astype(np.float64)
        discounted = _good_turing(counts.counts[n - 1], reliable) * own
        totals = counts.trie.totals(n, own)
        kept = counts.trie.totals(n, discounted)
        below = counts.trie.totals(n, lower[links[n - 1]])  # what the shorter context gives these
        covered = below >= 1 - 1e-9  # every token was seen behind this context
        full = (totals - kept <= TINY * totals) & ~covered
        totals = np.where(covered, kept, np.where(full, totals + 1, totals))
        probability = discounted / np.maximum(totals, TINY)[parents]
        left = 1 - kept / np.maximum(totals, TINY)
        alpha = np.where(covered, 0, left / np.where(covered, 1, 1 - below))
        levels[-1] = (lower, np.where(kept > 0, alpha, 1.0))
        levels.append((probability, None))
    return _model(counts, levels, "Katz", {"reliable": reliable})


def _good_turing(values: Array, reliable: int) -> Array:
    """The factor for each count r: (r*/r − A)/(1 − A), with r* = (r + 1) n_{r+1}/n_r; 1 for counts
    that are reliable, or for which the estimate makes no sense."""
    n = np.bincount(values.clip(0, reliable + 1).astype(np.int64), minlength=reliable + 2)
    n[reliable + 1] = (values == reliable + 1).sum()
    factors = np.ones(reliable + 2)
    beyond = (reliable + 1) * n[reliable + 1] / n[1] if n[1] else 1.0
    for r in range(1, reliable + 1):
        if n[r] and beyond < 1:
            factor = ((r + 1) * n[r + 1] / (r * n[r]) - beyond) / (1 - beyond)
            factors[r] = factor if 0 < factor <= 1 else 1.0
    return factors[values.clip(0, reliable + 1).astype(np.int64)]


def kneser_ney(
    counts: Counts,
    *,
    modified: bool = True,
    discount: float | None = None,
    uniform: bool = True,
) -> NGram:
    """discount: one D for all, instead of an estimate for each order
    uniform: interpolate the shortest context with the uniform distribution
    """
    if discount is not None and not 0 <= discount <= 1:
        raise UsageError(f"a discount is between 0 and 1, not {discount}")
    trie, links = counts.trie, counts.trie.suffixes()
    discounts: list[list[float]] = []
    lower = np.where(_predicted(counts), 1 / _many(counts), 0.0)
    levels: list[tuple[Array, Array | None]] = []
    for n in range(1, trie.order + 1):
        values = _adjusted(counts, links, n)
        d = np.full(3, discount) if discount is not None else _discounts(values, modified)
        discounts.append([round(float(x), 6) for x in d])
        if n == 1 and not uniform:
            levels.append((values / values.sum(), None))
            continue
        taken = np.concatenate([[0.0], d])[values.clip(0, 3).astype(np.int64)]
        taken = np.minimum(taken, values)
        totals, given = trie.totals(n, values), trie.totals(n, taken)
        parents = trie.parents(n)
        gamma = np.where(totals > 0, given / np.maximum(totals, 1), 1.0)
        below = lower if n == 1 else levels[-1][0][links[n - 1]]
        share = (values - taken) / np.maximum(totals, 1)[parents]
        if n > 1:
            levels[-1] = (levels[-1][0], gamma)
        levels.append((share + gamma[parents] * below, None))
    name = "modified Kneser-Ney" if modified and discount is None else "Kneser-Ney"
    return _model(counts, levels, name, {"discounts": discounts})


def _adjusted(counts: Counts, links: Sequence[Array], n: int) -> Array:
    """a of each n-gram: (E_n,)."""
    trie = counts.trie
    if n == trie.order:
        return counts.counts[n - 1].astype(np.int64) if n > 1 else _unigrams(counts)[0]
    many = np.bincount(links[n], minlength=trie.sizes[n - 1])
    if counts.begin is not None:
        start = trie.beginning_with(counts.begin, n)
        many[start] = 0 if n == 1 else counts.counts[n - 1][start]
    return many


def _discounts(values: Array, modified: bool) -> Array:
    """D₁, D₂, D₃₊ from how many n-grams have the values 1 to 4; equal ones if not modified."""
    n1, n2, n3, n4 = (int((values == r).sum()) for r in range(1, 5))
    if not modified:
        return np.full(3, n1 / (n1 + 2 * n2) if n1 and n2 else FALLBACK[0])
    if not (n1 and n2 and n3 and n4):
        return np.array(FALLBACK)
    y = n1 / (n1 + 2 * n2)
    d = np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return d if (d >= 0).all() and (d <= [1, 2, 3]).all() else np.array(FALLBACK)


def _many(counts: Counts) -> int:
    """How many tokens can follow: all but the one that begins documents."""
    return counts.trie.vocab_size - (counts.begin is not None)


def _predicted(counts: Counts) -> Array:
    return np.arange(counts.trie.vocab_size) != (-1 if counts.begin is None else counts.begin)


def _unigrams(counts: Counts) -> tuple[Array, int]:
    values = np.where(_predicted(counts), counts.counts[0], 0)
    if not values.any():
        raise UsageError("there is no text to count")
    return values, int(values.sum())


def _unigrams_or_top(counts: Counts) -> tuple[Array, Array]:
    """The longest n-grams' counts, and c(h) of their contexts."""
    if counts.trie.order == 1:
        values, total = _unigrams(counts)
        return values, np.array([total])
    values = counts.counts[-1].astype(np.int64)
    return values, counts.trie.totals(counts.trie.order, values)


def _shares(counts: Counts, n: int) -> tuple[Array, Array]:
    """c(h w)/c(h) of each n-gram: (E_n,), and c(h): (E_{n-1},)."""
    values = counts.counts[n - 1].astype(np.int64)
    totals = counts.trie.totals(n, values)
    return values / totals[counts.trie.parents(n)], totals


def _words(counts: Counts, probability: Array) -> tuple[Array, Array | None]:
    """The first level: the token that begins documents has no probability."""
    return np.where(_predicted(counts), probability, 0.0), None


def _model(
    counts: Counts,
    levels: Sequence[tuple[Array, Array | None]],
    smoothing: str,
    settings: dict[str, Any],
    *,
    unseen: float = 1.0,
) -> NGram:
    none = np.ones(0, np.float32)
    made = []
    for n, (probability, backoff) in enumerate(levels, start=1):
        if n == counts.trie.order:
            backoff = none
        elif backoff is None:
            backoff = np.ones(len(probability))
        made.append(Level(probability.astype(np.float32), backoff.astype(np.float32)))
    return NGram(counts.trie, tuple(made), counts.begin, smoothing, unseen, settings)
