"""N-gram counts and smoothings, against nltk and against the formulae over dictionaries."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nltk import lm
from nltk.lm import models as nltk_models
from nltk.util import everygrams

from trivium.errors import NotFound, UsageError
from trivium.language import smoothing
from trivium.language.ngram import NGram
from trivium.language.ngram_counts import Counts, count, merge

BEGIN, END, VOCAB = 0, 1, 14
Documents = list[list[int]]


def text(seed: int, size: int = 120) -> Documents:
    """Documents of a process with some memory, so that orders above one matter."""
    draw = random.Random(seed)
    documents = []
    for _ in range(size):
        ids = [BEGIN]
        for _ in range(draw.randrange(12)):
            likely = 2 + (3 * ids[-1] + ids[len(ids) // 2]) % (VOCAB - 3)
            ids.append(likely if draw.random() < 0.6 else draw.randrange(2, VOCAB - 1))
        documents.append([*ids, END])
    return documents


TRAIN, HELD_OUT = text(0), text(1, 30)


def ngrams(documents: Documents, n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(ids[i : i + n]) for ids in documents for i in range(len(ids) - n + 1))


def listed(counts: Counts, n: int) -> dict[tuple[int, ...], int]:
    """The table of one order as a dictionary."""
    rows: list[tuple[int, ...]] = [()]
    for level in range(1, n + 1):
        words = counts.trie.words[level - 1]
        parents = counts.trie.parents(level)
        rows = [(*rows[p], int(w)) for p, w in zip(parents, words, strict=True)]
    return {row: int(c) for row, c in zip(rows, counts.counts[n - 1], strict=True) if c}


@pytest.mark.parametrize("chunk", [7, 50, 1 << 20])
def test_counts(chunk: int) -> None:
    """Whatever the chunks, and however they are merged."""
    found = count(TRAIN, VOCAB, 5, begin=BEGIN, chunk=chunk)
    for n in range(1, 6):
        assert listed(found, n) == ngrams(TRAIN, n)


def test_a_document_longer_than_a_chunk() -> None:
    whole = [token for ids in TRAIN for token in ids]
    found = count([whole], VOCAB, 4, chunk=100)
    assert listed(found, 4) == ngrams([whole], 4)


def test_merged_is_counted_together() -> None:
    one, other = count(TRAIN[:40], VOCAB, 3), count(TRAIN[40:], VOCAB, 3)
    assert listed(merge(one, other), 3) == ngrams(TRAIN, 3)


def test_shortened_is_counted_to_that_order() -> None:
    longer, short = (count(TRAIN, VOCAB, n, begin=BEGIN) for n in (4, 2))
    found, expected = smoothing.kneser_ney(longer.shortened(2)), smoothing.kneser_ney(short)
    assert found.score(HELD_OUT) == expected.score(HELD_OUT)


def test_suffixes() -> None:
    counts = count(TRAIN, VOCAB, 4)
    rows = [list(listed(counts, n)) for n in range(2, 5)]
    for n, links in enumerate(counts.trie.suffixes()[2:], start=3):
        shorter, longer = rows[n - 3], rows[n - 2]
        assert [shorter[link] for link in links] == [row[1:] for row in longer]


SMOOTHINGS: dict[str, Callable[[Counts], NGram]] = {
    "add-one": smoothing.add_k,
    "add-k": lambda counts: smoothing.add_k(counts, 0.05),
    "jelinek-mercer": lambda counts: smoothing.jelinek_mercer(
        counts, smoothing.held_out_weights(counts, HELD_OUT)
    ),
    "katz": smoothing.katz,
    "kneser-ney": lambda counts: smoothing.kneser_ney(counts, modified=False),
    "modified": smoothing.kneser_ney,
    "fixed": lambda counts: smoothing.kneser_ney(counts, discount=0.3),
}


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("name", SMOOTHINGS)
def test_probabilities_sum_to_one(name: str, order: int) -> None:
    model = SMOOTHINGS[name](count(TRAIN, VOCAB, order, begin=BEGIN))
    contexts = [ids[:i] for ids in [*TRAIN[:10], *HELD_OUT] for i in range(len(ids))]
    for context in contexts:
        p = model.next(context)
        assert p.sum() == pytest.approx(1, abs=1e-5)
        assert p[BEGIN] == 0 and (np.delete(p, BEGIN) > 0).all()


@pytest.mark.parametrize("name", [*SMOOTHINGS, "stupid"])
def test_scored_at_once_or_token_by_token(name: str) -> None:
    model = (SMOOTHINGS | {"stupid": smoothing.stupid_backoff})[name](count(TRAIN, VOCAB, 4))
    for ids in HELD_OUT:
        expected = [model.next(ids[:i])[token] for i, token in enumerate(ids)]
        assert model.probabilities(np.array(ids)) == pytest.approx(expected, rel=1e-6)


def nltk_model(kind: Callable[..., nltk_models.LanguageModel], order: int) -> object:
    model = kind(order)
    words = [[str(token) for token in ids] for ids in TRAIN]
    vocabulary = [str(token) for token in range(VOCAB)]
    model.fit((everygrams(ids, max_len=order) for ids in words), vocabulary)
    return model


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        (lambda n: lm.Lidstone(0.1, n), lambda c: smoothing.add_k(c, 0.1)),
        (lambda n: lm.Laplace(n), smoothing.add_k),
        (lambda n: lm.StupidBackoff(order=n), smoothing.stupid_backoff),
        (
            lambda n: lm.KneserNeyInterpolated(n, discount=0.1),
            lambda c: smoothing.kneser_ney(c, discount=0.1, uniform=False),
        ),
    ],
    ids=["lidstone", "laplace", "stupid back-off", "kneser-ney"],
)
def test_equals_nltk(
    kind: Callable[..., nltk_models.LanguageModel], ours: Callable[[Counts], NGram], order: int
) -> None:
    """nltk counts the unknown word as one more of the vocabulary, and has no special first token:
    neither has the model here. Each history is a part of the text behind its beginning."""
    expected = nltk_model(kind, order)
    model = ours(count(TRAIN, VOCAB + 1, order))
    compared = 0
    for ids in [*TRAIN[:20], *HELD_OUT]:
        for i in range(order, len(ids)):
            context, token = ids[i - order + 1 : i], ids[i]
            seen = order == 2 or tuple(context) in ngrams(TRAIN, order - 1)
            if not seen:  # nltk's formula divides by the zero occurrences of such a history
                continue
            value = expected.score(str(token), [str(word) for word in context])  # type: ignore[attr-defined]
            assert model.next(context)[token] == pytest.approx(value, rel=1e-5, abs=1e-12)
            compared += 1
    assert compared > 80


class Dictionaries:
    """Modified Kneser-Ney from the formulae of Chen & Goodman, one dictionary for each order."""

    def __init__(self, documents: Documents, order: int) -> None:
        self.order = order
        self.a: list[dict[tuple[int, ...], int]] = [dict(ngrams(documents, order))]
        for n in range(order - 1, 0, -1):
            before: dict[tuple[int, ...], set[int]] = defaultdict(set)
            for row in ngrams(documents, n + 1):
                before[row[1:]].add(row[0])
            values = {row: len(found) for row, found in before.items()}
            values |= {
                row: c for row, c in ngrams(documents, n).items() if row[0] == BEGIN and n > 1
            }
            self.a.insert(0, values)
        self.a[0].pop((BEGIN,), None)

    def discount(self, n: int, value: int) -> float:
        many = Counter(self.a[n - 1].values())
        if not all(many[r] for r in range(1, 5)):  # too small a text: as KenLM
            return (0.5, 1.0, 1.5)[min(value, 3) - 1]
        y = many[1] / (many[1] + 2 * many[2])
        r = min(value, 3)
        return r - (r + 1) * y * many[r + 1] / many[r]

    def p(self, context: tuple[int, ...], token: int) -> float:
        n = len(context) + 1
        lower = self.p(context[1:], token) if context else 1 / (VOCAB - 1)
        behind = {row[-1]: a for row, a in self.a[n - 1].items() if row[:-1] == context}
        if not behind:
            return lower
        total = sum(behind.values())
        gamma = sum(self.discount(n, a) for a in behind.values()) / total
        own = behind.get(token, 0)
        share = (own - self.discount(n, own)) / total if own else 0.0
        return share + gamma * lower


@pytest.mark.parametrize("order", [1, 2, 4])
def test_modified_kneser_ney_equals_the_formulae(order: int) -> None:
    expected = Dictionaries(TRAIN, order)
    model = smoothing.kneser_ney(count(TRAIN, VOCAB, order, begin=BEGIN))
    nll = 0.0
    for ids in HELD_OUT:
        for i in range(1, len(ids)):
            p = expected.p(tuple(ids[max(i - order + 1, 0) : i]), ids[i])
            assert model.next(ids[:i])[ids[i]] == pytest.approx(p, rel=1e-5)
            nll -= math.log(p)
    score = model.score(HELD_OUT)
    assert score.tokens == sum(len(ids) - 1 for ids in HELD_OUT)
    assert score.perplexity == pytest.approx(math.exp(nll / score.tokens), rel=1e-5)


def test_held_out_weights_are_the_best_ones() -> None:
    counts = count(TRAIN, VOCAB, 3, begin=BEGIN)
    best = smoothing.held_out_weights(counts, HELD_OUT, rounds=200)
    least = smoothing.jelinek_mercer(counts, best).score(HELD_OUT).nll
    for n in range(3):
        for step in (-0.05, 0.05):
            other = [w + step * (n == i) for i, w in enumerate(best)]
            other = [min(max(w, 0), 1 - 1e-6) for w in other]
            assert smoothing.jelinek_mercer(counts, other).score(HELD_OUT).nll >= least - 1e-6


def test_kneser_ney_beats_add_one_and_memory_helps() -> None:
    counts = {n: count(TRAIN, VOCAB, n, begin=BEGIN) for n in (1, 3)}
    best = smoothing.kneser_ney(counts[3]).score(HELD_OUT).nll
    assert best < smoothing.add_k(counts[3]).score(HELD_OUT).nll
    assert best < smoothing.kneser_ney(counts[1]).score(HELD_OUT).nll


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = smoothing.kneser_ney(count(TRAIN, VOCAB, 4, begin=BEGIN))
    model.save(tmp_path)
    loaded = NGram.load(tmp_path)
    assert loaded.score(HELD_OUT) == model.score(HELD_OUT)
    assert loaded.settings == model.settings and loaded.bytes == model.bytes


def _spoil_first(path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    arrays = load_file(path / "model.safetensors")
    arrays["first.2"] = arrays["first.2"][::-1].copy()
    save_file(arrays, path / "model.safetensors")


BROKEN: dict[str, Callable[[Path], object]] = {
    "another kind": lambda p: (p / "config.json").write_text('{"kind": "transformer"}'),
    "cut short": lambda p: (p / "model.safetensors").write_bytes(b"x" * 30),
    "other sizes": lambda p: (p / "config.json").write_text(
        (p / "config.json").read_text().replace('"vocab_size": 14', '"vocab_size": 9')
    ),
    "a table out of order": _spoil_first,
    "no weights": lambda p: (p / "model.safetensors").unlink(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_told_in_one_line(name: str, tmp_path: Path) -> None:
    smoothing.kneser_ney(count(TRAIN, VOCAB, 3)).save(tmp_path)
    BROKEN[name](tmp_path)
    with pytest.raises((UsageError, NotFound)) as caught:
        NGram.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: count([], VOCAB, 3), "no text"),
        (lambda: count([[3, 99]], VOCAB, 3), "outside 0 to 13"),
        (lambda: count(TRAIN, VOCAB, 0), "order"),
        (lambda: smoothing.add_k(count(TRAIN, VOCAB, 2), 0), "k is above 0"),
        (lambda: smoothing.jelinek_mercer(count(TRAIN, VOCAB, 2), [0.5]), "2 weights"),
        (lambda: smoothing.stupid_backoff(count([[2, 3]], VOCAB, 2)).score([[4, 5]]), "impossible"),
        (lambda: smoothing.kneser_ney(count(TRAIN, VOCAB, 2)).score([]), "no text to score"),
    ],
)
def test_what_is_wrong(wrong: Callable[[], object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        wrong()


def test_generates() -> None:
    model = smoothing.kneser_ney(count(TRAIN, VOCAB, 3, begin=BEGIN))
    drawn = [tuple(model.generate([BEGIN], end=END, seed=seed)) for seed in range(200)]
    assert drawn[7] == tuple(model.generate([BEGIN], end=END, seed=7))
    first = Counter(ids[0] for ids in drawn if ids)
    expected = model.next([BEGIN])
    for token, many in first.items():
        assert abs(many / 200 - expected[token]) < 0.12
    greedy = list(model.generate([BEGIN], temperature=0, max_tokens=1))
    assert greedy == [int(expected.argmax())]
