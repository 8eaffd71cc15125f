"""Our word vectors beside gensim's: the same text, settings and threads; speed and quality.

    python bench/word2vec.py FILE [--threads 2] [--epochs 5] [--rounds 1] [--kind skip-gram cbow]

FILE is UTF-8 text with a document (or sentence) on each line, words between spaces, as gensim's
`corpus_file` wants it, which is its fastest way. Each program runs in a process of its own, in
turn; the best of `rounds` counts. `whole` counts from the file to the vectors, `training` the
epochs alone. Quality, by gensim's own evaluation of both: Spearman's correlation with people on
WordSim-353 and SimLex-999, and the share of right answers of questions-words.txt, all three from
gensim's test data.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

SETTINGS = {"width": 100, "window": 5, "negative": 5, "subsample": 1e-3, "min_count": 5}


def ours(file: Path, kind: str, threads: int, epochs: int, out: Path) -> dict[str, float]:
    from trivium.language import word2vec
    from trivium.language.word_vectors import WordVectors

    start = time.perf_counter()

    def lines() -> "object":
        with file.open(encoding="utf-8") as stream:
            yield from stream

    split = word2vec.between_spaces
    vocabulary = word2vec.count_words(lines(), min_count=SETTINGS["min_count"], split=split)
    numbers = out.with_suffix(".ids")
    many = word2vec.encode(lines(), vocabulary, numbers, split=split)
    config = word2vec.Config(
        kind, SETTINGS["width"], SETTINGS["window"], SETTINGS["negative"], SETTINGS["subsample"],
        epochs, 0.0, threads,
    )  # fmt: skip
    learning = word2vec.Learning(vocabulary, config)
    middle = time.perf_counter()
    for _ in learning.run(numbers):
        pass
    end = time.perf_counter()
    WordVectors(vocabulary.words, learning.matrix).save(out)
    return figures(many * epochs, start, middle, end)


def gensim(file: Path, kind: str, threads: int, epochs: int, out: Path) -> dict[str, float]:
    from gensim.models import Word2Vec

    start = time.perf_counter()
    model = Word2Vec(
        vector_size=SETTINGS["width"], window=SETTINGS["window"], negative=SETTINGS["negative"],
        sample=SETTINGS["subsample"], min_count=SETTINGS["min_count"], workers=threads,
        sg=int(kind == "skip-gram"), seed=1,
    )  # fmt: skip
    model.build_vocab(corpus_file=str(file))
    middle = time.perf_counter()
    model.train(
        corpus_file=str(file),
        total_examples=model.corpus_count,
        total_words=model.corpus_total_words,
        epochs=epochs,
    )
    end = time.perf_counter()
    model.wv.save_word2vec_format(str(out), binary=True)
    return figures(sum(model.wv.expandos["count"].tolist()) * epochs, start, middle, end)


def figures(words: int, start: float, middle: float, end: float) -> dict[str, float]:
    return {
        "training words/s": words / (end - middle),
        "whole words/s": words / (end - start),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def quality(path: Path) -> dict[str, float]:
    from gensim.models import KeyedVectors
    from gensim.test.utils import datapath

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vectors = KeyedVectors.load_word2vec_format(str(path), binary=True)
        words = vectors.evaluate_word_pairs(datapath("wordsim353.tsv"))[1].statistic
        lexical = vectors.evaluate_word_pairs(datapath("simlex999.txt"))[1].statistic
        right = vectors.evaluate_word_analogies(datapath("questions-words.txt"))[0]
    return {"wordsim": words, "simlex": lexical, "analogies": right}


def measured(name: str, options: argparse.Namespace, kind: str, folder: Path) -> dict[str, float]:
    out = folder / f"{name}-{kind}.bin"
    command = [sys.executable, __file__, str(options.file), "--run", name, "--kind", kind]
    command += [
        "--threads",
        str(options.threads),
        "--epochs",
        str(options.epochs),
        "--out",
        str(out),
    ]
    best: dict[str, float] = {}
    for _ in range(options.rounds):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        if not best or found["whole words/s"] > best["whole words/s"]:
            best = found
    return best | quality(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kind", nargs="+", default=["skip-gram", "cbow"])
    parser.add_argument("--run", choices=["ours", "gensim"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run = {"ours": ours, "gensim": gensim}[options.run]
        found = run(options.file, options.kind[0], options.threads, options.epochs, options.out)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kind:
            rows = {
                name: measured(name, options, kind, Path(folder)) for name in ("ours", "gensim")
            }
            print(f"\n{kind}, {options.threads} threads, {options.epochs} epochs")
            print(f"{'':18}{'ours':>12}{'gensim':>12}{'ratio':>8}")
            for key, value in rows["ours"].items():
                other = rows["gensim"][key]
                print(f"{key:18}{value:12,.4g}{other:12,.4g}{value / other:7.2f}×")


if __name__ == "__main__":
    main()
