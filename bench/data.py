"""The input pipeline against the tokenizer alone: what reading, packing and resuming cost.

    python bench/data.py [--megabytes 100]

A file of that size is made of the text inside CPython, shuffled by paragraph. In turns, the
tokenizer of the default model encodes paragraphs of it (the library's batches, all cores), and
TokenBatches makes batches of 32 rows of 1,024 tokens. The ratio is of tokens per second.
"""

import argparse
import random
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

from trivium import hub
from trivium.data import TokenBatches, documents
from trivium.gguf_file import GGUFFile
from trivium.language.tokenizer import Tokenizer

ROWS, LENGTH, BATCHES, ROUNDS = 32, 1024, 60, 5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=100)
    size = parser.parse_args().megabytes * 1_000_000
    tokenizer = Tokenizer.from_gguf(GGUFFile(hub.find(hub.DEFAULT)).metadata)
    paragraphs = "\n\n".join(documents()).split("\n\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        draw = random.Random(0)
        with path.open("w") as file:
            while file.tell() < size:
                file.write("\n\n".join(draw.sample(paragraphs, len(paragraphs))) + "\n\n")
        measure(path, tokenizer, paragraphs)


def measure(path: Path, tokenizer: Tokenizer, paragraphs: list[str]) -> None:
    end = tokenizer.eos or 0

    def batches() -> TokenBatches:
        return TokenBatches(
            documents(path), tokenizer.encode_many, rows=ROWS, length=LENGTH, end=end
        )

    start = time.perf_counter()
    made = batches()
    stream = iter(made)
    next(stream)
    first = time.perf_counter() - start
    alone, ours = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        tokens = sum(map(len, tokenizer.encode_many(paragraphs * 16)))
        alone.append(tokens / (time.perf_counter() - start))
        list(islice(stream, made.ahead + 1))  # made while the other one was measured
        start = time.perf_counter()
        for _ in islice(stream, BATCHES):
            pass
        ours.append(BATCHES * ROWS * LENGTH / (time.perf_counter() - start))
    state = made.state()
    stream.close()  # type: ignore[attr-defined]
    start = time.perf_counter()
    again = batches()
    again.load(state)
    next(iter(again))
    resumed = time.perf_counter() - start
    ratios = [a / b for a, b in zip(ours, alone, strict=True)]
    print(f"file            {path.stat().st_size / 1e6:,.0f} MB")
    print(f"tokenizer       {statistics.median(alone):,.0f} tokens/s")
    print(f"batches         {statistics.median(ours):,.0f} tokens/s")
    print(f"ratio           {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
    print(f"first batch     {first:.2f} s; after a resume {resumed:.2f} s")


if __name__ == "__main__":
    main()
