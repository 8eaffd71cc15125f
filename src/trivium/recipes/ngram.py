"""Count n-grams, and compare what smoothings make of the counts.

P(w | history) ≈ P(w | the N − 1 tokens before). Orders 1 to N and seven smoothings, from add-one to
modified Kneser-Ney (Chen & Goodman 1999), in bits per byte of held-out text, which compares them
with neural models. k of add-k and the weights of Jelinek-Mercer are fitted on a twentieth of the
training text, whose counts are then added to the others.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal

import numpy as np

from trivium.data import documents
from trivium.errors import UsageError
from trivium.language import smoothing
from trivium.language.ngram import NGram
from trivium.language.ngram_counts import Counts, count, merge
from trivium.language.tokenizer import Tokenizer
from trivium.recipes.chart import Chart
from trivium.recipes.config import RecipeConfig
from trivium.recipes.language_model import Text, open_text
from trivium.recipes.run import Run

Rows = Sequence[Sequence[int]]
TOGETHER = 1 << 20  # characters that are encoded at once
ASKED = 1000  # tokens that the models guess
K = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of add-k
BYTES_PER_TOKEN, TOKENS_PER_SECOND, BYTES_PER_NGRAM = 3.5, 3e5, 55  # for the dry run


@dataclass(frozen=True)
class Config(RecipeConfig):
    data: str = ""  # text: a file, folder, glob or hf:NAME; "": the reference inside CPython
    order: int = 5  # N: tokens of the longest n-grams
    vocab_size: int = 4096  # of the tokenizer that is made from the data
    tokenizer: str = ""  # a model or folder whose tokenizer is taken instead
    smoothing: Literal["compare", "katz", "kneser-ney", "modified-kneser-ney"] = "compare"  # or one
    held_out: float = 0.1  # of the documents
    held_tokens: int = 200_000  # of which at most so many are scored
    prompt: str = "The"  # of the samples


def encoded(texts: Iterable[str], tokenizer: Tokenizer, end: int) -> Iterator[list[int]]:
    """Each text as tokens. A token of its own, behind those of the tokenizer, begins it."""
    group: list[str] = []
    for text in chain(texts, [None]):
        if text is not None:
            group.append(text)
        if group and (text is None or sum(map(len, group)) >= TOGETHER):
            for ids in tokenizer.encode_many(group):
                yield [tokenizer.vocab_size, *ids, end]
            group = []


def up_to(rows: Iterable[list[int]], tokens: int) -> list[list[int]]:
    kept: list[list[int]] = []
    for row in rows:
        kept.append(row[:tokens])
        tokens -= len(row)
        if tokens <= 0:
            break
    return kept


def fitted_k(counts: Counts, tune: Rows) -> float:
    return min(K, key=lambda k: smoothing.add_k(counts, k).score(tune).nll)


def smoothings(counts: Counts, tune: Rows) -> dict[str, Callable[[Counts], NGram]]:
    """By name; `counts` are without those of `tune`."""
    best, weights = fitted_k(counts, tune), smoothing.held_out_weights(counts, tune)
    return {
        "add-one": smoothing.add_k,
        f"add-{best:g}": lambda c: smoothing.add_k(c, best),
        "Jelinek-Mercer": lambda c: smoothing.jelinek_mercer(c, weights),
        **ALONE,
    }


ALONE: dict[str, Callable[[Counts], NGram]] = {
    "Katz": smoothing.katz,
    "Kneser-Ney": lambda counts: smoothing.kneser_ney(counts, modified=False),
    "modified Kneser-Ney": smoothing.kneser_ney,
}


def guessed(model: NGram, rows: Rows, begin: int) -> float:
    """The share of the first held-out tokens that are those which the model finds likeliest."""
    right = asked = 0
    for row in rows:
        for i in range(1, len(row)):
            right += int(model.next(row[max(i - model.trie.order, 0) : i]).argmax()) == row[i]
            asked += 1
            if asked == ASKED:
                return right / asked
    return right / max(asked, 1)


@dataclass
class Table:
    """What was measured. `bits[name][n]`: bits per byte."""

    bits: dict[str, dict[int, float]]
    perplexities: dict[str, float]
    guesses: dict[str, float]
    best: NGram | None = None


def compare(
    run: Run, rest: Counts, tune: Rows, held: Rows, size: int, order: int, only: str
) -> tuple[Table, Counts]:
    """Every smoothing at every order, or one at the highest."""
    begin, counts = (
        rest.begin,
        merge(rest, count(tune, rest.trie.vocab_size, order, begin=rest.begin)),
    )
    assert begin is not None
    table, least = Table({}, {}, {}), np.inf
    for n in range(1, order + 1) if only == "compare" else (order,):
        short = counts.shortened(n)
        named = smoothings(rest.shortened(n), tune) if only == "compare" else ALONE
        for name, smooth in named.items():
            if only not in ("compare", name.lower().replace(" ", "-")):
                continue
            model = smooth(short)
            score = model.score(held)
            bits = score.bits_per_byte(size)
            group = "add-k" if name.startswith("add-") and name != "add-one" else name
            table.bits.setdefault(group, {})[n] = bits
            run.tell(f"order {n}, {name}: {bits:.4f} bits per byte")
            if n == order:
                table.perplexities[group] = score.perplexity
                table.guesses[group] = guessed(model, held, begin)
            if bits < least:
                least, table.best = bits, model
    if only == "compare":
        table.guesses["stupid back-off"] = guessed(smoothing.stupid_backoff(counts), held, begin)
    return table, counts


def report(run: Run, table: Table, counts: Counts, order: int) -> None:
    orders = sorted({n for row in table.bits.values() for n in row})
    headers = ("smoothing", *(f"order {n}" for n in orders))
    rows = [(name, *(row[n] for n in orders)) for name, row in table.bits.items()]
    run.tables.append(("Bits per byte of held-out text", headers, rows))
    run.tables.append(
        (
            f"Order {order}",
            ("smoothing", "perplexity of a token", "next token guessed"),
            [
                (name, table.perplexities.get(name, "no probabilities"), value)
                for name, value in table.guesses.items()
            ],
        )
    )
    run.tables.append(
        (
            "The counts",
            ("order", "different n-grams", "that occur once"),
            [
                (n, size, int((many == 1).sum()))
                for n, (size, many) in enumerate(
                    zip(counts.trie.sizes, counts.counts, strict=True), start=1
                )
            ],
        )
    )
    series: dict[str, Sequence[tuple[float, float]]] = {
        name: list(row.items()) for name, row in table.bits.items()
    }
    run.charts.append(Chart("Smoothings", "order", "bits per byte", series))


def main(config: Config) -> dict[str, Any]:
    run = Run.start(config)
    if run.results is not None:
        return run.results
    if config.dry_run:
        tokens = documents(config.data or None).bytes / BYTES_PER_TOKEN
        memory = int(tokens * BYTES_PER_NGRAM * 0.25 * config.order)
        return {"tokens": int(tokens), "memory": memory, "seconds": tokens / TOKENS_PER_SECOND}
    text = open_text(
        run,
        config.data,
        vocab_size=config.vocab_size,
        tokenizer=config.tokenizer,
        held_out=config.held_out,
    )
    tokenizer, begin = text.tokenizer, text.vocab_size
    held = up_to(encoded(text.held_out, tokenizer, text.end), config.held_tokens)
    size = sum(len(tokenizer.decode(row[1:]).encode()) for row in held)
    if not size:
        raise UsageError("the held-out documents spell nothing: give more text")
    rest, tune = _counted(run, text, config.order)
    run.tell(f"{int(rest.counts[0].sum()):,} tokens, {sum(rest.trie.sizes):,} n-grams")
    table, counts = compare(run, rest, tune, held, size, config.order, config.smoothing)
    model = table.best
    assert model is not None
    model.save(run.folder)
    for seed in range(3):
        context = [begin, *tokenizer.encode(config.prompt)]
        drawn = model.generate(context, end=text.end, seed=config.seed + seed)
        run.sample(seed, config.prompt + tokenizer.decode(drawn))
    report(run, table, counts, config.order)
    lowest = {name: min(row.values()) for name, row in table.bits.items()}
    return run.finish(
        {
            "bits per byte": min(lowest.values()),
            "by": f"{model.smoothing}, order {model.trie.order}",
            **{f"bits per byte of {name}": value for name, value in lowest.items()},
            "of held-out bytes": size,
            "n-grams": sum(model.trie.sizes),
            "bytes of the model": model.bytes,
        },
        limits="It sees a few tokens back and nothing of what they mean.",
    )


def _counted(run: Run, text: Text, order: int) -> tuple[Counts, Rows]:
    """The counts of most of the training text, and the rest of it as tokens."""
    rest, tune = text.train.split(0.05)
    begin = text.vocab_size
    rows = encoded(rest, text.tokenizer, text.end)
    with run.progress("counting", text.tokens, "token") as bar:

        def shown() -> Iterator[list[int]]:
            done = 0
            for row in rows:
                yield row
                done += len(row)
                bar.show(done)

        counts = count(shown(), begin + 1, order, begin=begin)
    return counts, list(islice(encoded(tune, text.tokenizer, text.end), 1 << 16))
