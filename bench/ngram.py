"""N-gram models of a real text: speed, memory and what they predict; nltk beside ours.

    python bench/ngram.py PATH [--order 5] [--vocab 8192] [--peer-megabytes 1]

PATH is a file, folder or glob of text. It is encoded by byte-level BPE made from it, counted,
smoothed (modified Kneser-Ney), saved, and scored on held-out documents. nltk counts and scores the
same ids of the first megabytes. `ratio` is ours to nltk, in tokens a second.
"""

import argparse
import itertools
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from trivium.data import Documents, documents
from trivium.language import bpe, smoothing
from trivium.language.ngram_counts import count
from trivium.language.tokenizer import Tokenizer


def encoded(texts: Documents, tokenizer: Tokenizer) -> Iterator[list[int]]:
    stream = bpe.pieces(texts)
    while group := list(itertools.islice(stream, 64)):
        for ids in tokenizer.encode_many(group):
            yield [0, *ids, 0]


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def nltk_speed(rows: list[list[int]], order: int) -> tuple[float, float]:
    """Tokens a second: counting, and scoring with its fastest model."""
    from nltk.lm import StupidBackoff
    from nltk.util import everygrams

    model = StupidBackoff(order=order)
    words = [[str(token) for token in ids] for ids in rows]
    vocabulary = {word for ids in words for word in ids}
    start = time.perf_counter()
    model.fit((everygrams(ids, max_len=order) for ids in words), vocabulary)
    counting = sum(map(len, rows)) / (time.perf_counter() - start)
    ids = words[0][:2000]
    start = time.perf_counter()
    for i in range(len(ids)):
        model.unmasked_score(ids[i], tuple(ids[max(i - order + 1, 0) : i]))
    return counting, len(ids) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path")
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--peer-megabytes", type=float, default=1)
    options = parser.parse_args()

    train, held_out = documents(options.path).split(0.02)
    size = train.bytes / 1e6
    few = itertools.islice(train, 64)
    start = time.perf_counter()
    tokenizer = bpe.train(few, options.vocab)
    print(f"text        {size:.1f} MB; tokenizer {time.perf_counter() - start:.1f} s")

    start = time.perf_counter()
    rows = list(encoded(held_out, tokenizer))
    tokens = sum(map(len, rows))
    print(f"encoding    {tokens / (time.perf_counter() - start):,.0f} tokens/s")

    before, start, held = peak(), time.perf_counter(), 0.0

    def timed() -> Iterator[list[int]]:
        nonlocal held
        mark = time.perf_counter()
        for row in encoded(train, tokenizer):
            held += time.perf_counter() - mark
            yield row
            mark = time.perf_counter()

    counts = count(timed(), tokenizer.vocab_size, options.order, begin=0)
    whole = time.perf_counter() - start
    many, counting = int(counts.counts[0].sum()), whole - held
    print(
        f"counting    {many:,} tokens in {counting:.1f} s: {many / counting:,.0f} tokens/s "
        f"({whole:.1f} s and {size / whole:.1f} MB/s with the encoding)"
    )
    print(f"n-grams     {', '.join(f'{n:,}' for n in counts.trie.sizes)}")
    start = time.perf_counter()
    model = smoothing.kneser_ney(counts)
    print(f"smoothing   {time.perf_counter() - start:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        on_disk = (Path(folder) / "model.safetensors").stat().st_size / 1e6
    each = model.bytes / sum(counts.trie.sizes)
    print(
        f"memory      model {model.bytes / 1e6:.0f} MB ({each:.1f} bytes an n-gram), file "
        f"{on_disk:.0f} MB; peak of the process {peak():,.0f} MB, {before:,.0f} MB before counting"
    )
    start = time.perf_counter()
    score = model.score(rows)
    scoring = tokens / (time.perf_counter() - start)
    # The split goes by documents: what was spelled is known from the tokens themselves.
    spelled = sum(len(tokenizer.decode(row).encode()) for row in rows)
    print(f"held out    {spelled:,} bytes: {score.bits_per_byte(spelled):.3f} bits/byte")

    some, budget = [], options.peer_megabytes * 1e6
    for row in encoded(train, tokenizer):
        some.append(row)
        budget -= 3.5 * len(row)
        if budget < 0:
            break
    start = time.perf_counter()
    count(some, tokenizer.vocab_size, options.order)
    ours = sum(map(len, some)) / (time.perf_counter() - start)
    theirs, their_scoring = nltk_speed(some, options.order)
    print(f"nltk        counting {theirs:,.0f} tokens/s, ratio {ours / theirs:.1f}×")
    print(
        f"            scoring  {their_scoring:,.0f} tokens/s, ratio {scoring / their_scoring:.1f}×"
    )


if __name__ == "__main__":
    main()
