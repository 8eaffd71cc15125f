"""Learn a vector for each word of a text, from the words it stands among.

word2vec (Mikolov et al. 2013), skip-gram or CBOW with negative sampling: a word's vector is what
tells the words around it from words drawn at random. Words that stand among the same words become
neighbours, and differences of vectors become relations: king − man + woman ≈ queen, where the text
is large. `trivium words runs/word2vec king` asks for neighbours.
"""

import io
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trivium.data import Documents, documents
from trivium.files import write_atomic
from trivium.language import negative_sampling, word2vec
from trivium.language.word2vec import Learning, Vocabulary
from trivium.language.word_vectors import FILE, WordVectors, read_questions
from trivium.recipes import metrics
from trivium.recipes.config import RecipeConfig, shared
from trivium.recipes.run import Run, Stopped

NUMBERS = "numbers.int32"
PICTURE = "words.png"
SPLITS = {"words": word2vec.words_of, "spaces": word2vec.between_spaces}
ENOUGH, MOST_EPOCHS, LEAST_EPOCHS = 5_000_000, 50, 5  # words that a small text is read for
SHOWN, OF_FREQUENT, SHORTEST = 24, 400, 5  # words of the table; letters of such a word
IN_PICTURE = 60


@dataclass(frozen=True)
class Config(RecipeConfig):
    data: str = ""  # text: a file, folder, glob or hf:NAME; "": the reference inside CPython
    words: Literal["words", "spaces"] = "words"  # runs of letters in small ones, or between spaces
    min_count: int = 5  # words that occur less often get no vector
    kind: Literal["skip-gram", "cbow"] = "skip-gram"  # what is guessed: neighbours, or the word
    width: int = 100  # numbers of a vector
    window: int = 5  # words to each side, at most
    negative: int = 5  # noise words for each pair
    subsample: float = 1e-3  # frequent words are left out beyond this share of the text
    epochs: int = 0  # 0: 5, and up to 50 for a small text
    learning_rate: float = 0.0  # 0: 0.025 for skip-gram, 0.1 for cbow
    threads: int = 0  # 0: as many as there are cores; 1 gives the same vectors every time
    questions: str = ""  # a file of analogies to answer, as questions-words.txt
    show: tuple[str, ...] = ()  # words whose neighbours go into the report; (): frequent ones


def epochs_for(words: int, config: Config) -> int:
    return config.epochs or min(max(ENOUGH // max(words, 1), LEAST_EPOCHS), MOST_EPOCHS)


def main(config: Config) -> dict[str, Any]:
    run = Run.start(config)
    if run.results is not None:
        return run.results
    source, split = documents(config.data or None), SPLITS[config.words]
    questions = list(read_questions(Path(config.questions))) if config.questions else []
    if config.dry_run:
        return estimate(source, config)
    run.data(source)
    vocabulary = word2vec.count_words(source, min_count=config.min_count, split=split)
    numbers = run.folder / NUMBERS
    words = word2vec.encode(source, vocabulary, numbers, split=split)
    settings = shared(word2vec.Config, config, epochs=epochs_for(words, config))
    run.tell(
        f"{len(vocabulary.words):,} words of {words:,}, {settings.epochs} epochs, "
        f"{settings.threads or os.cpu_count()} threads, "
        + ("compiled" if negative_sampling.kernel() else "without a C compiler: slower")
    )
    learning = Learning(vocabulary, settings)
    speed, loss = learn(run, learning, numbers)
    vectors = learning.vectors
    vectors.save(run.folder / FILE)
    description = {"kind": "word2vec", "width": config.width, "words": len(vectors)}
    write_atomic(run.folder / "config.json", json.dumps(description, indent=2) + "\n")
    results = {"words": len(vectors), "words read": words * settings.epochs, "loss": loss}
    results |= {"words per second": speed} | report(run, vectors, vocabulary, config, questions)
    done = run.finish(results, limits=LIMITS)
    for path in (numbers, run.folder / word2vec.STATE):
        path.unlink(missing_ok=True)
    return done


LIMITS = (
    "A word has one vector, whatever it means here or there. Neighbours are words that stand among "
    "the same words: opposites too. It holds the prejudices of the text."
)


def learn(run: Run, learning: Learning, numbers: Path) -> tuple[float, float]:
    """Words a second, and the loss of the last epoch. Goes on from the last whole epoch."""
    learning.resume(run.folder)
    log, epochs, blocks = (
        run.folder / "metrics.jsonl",
        learning.config.epochs,
        learning.blocks(numbers),
    )
    if learning.epoch:
        run.tell(f"goes on after epoch {learning.epoch} of {epochs}")
    step = learning.epoch * blocks
    metrics.rewind(log, step + 1)
    speeds, losses = [0.0], [0.0]
    with run.progress("word2vec", epochs * blocks, "part") as bar:
        try:
            for progress in learning.run(numbers):
                step += 1
                speeds.append(progress.words_per_second)
                losses.append(progress.loss)
                run.log(step, loss=progress.loss, words_per_second=progress.words_per_second)
                bar.show(step, f"loss {progress.loss:.4f}, {speeds[-1]:,.0f} words/s")
                if progress.ends_epoch and progress.epoch < epochs:
                    learning.save(run.folder)
        except KeyboardInterrupt:
            saved = (
                f"saved in {run.folder} after epoch {learning.epoch}, " if learning.epoch else ""
            )
            raise Stopped(f"stopped: {saved}the same command goes on") from None
    speeds, losses = speeds[1:] or speeds, losses[-blocks:]
    return sorted(speeds)[len(speeds) // 2], sum(losses) / len(losses)


def report(
    run: Run,
    vectors: WordVectors,
    vocabulary: Vocabulary,
    config: Config,
    questions: Sequence[tuple[str, list[str]]],
) -> dict[str, float]:
    """The tables and the picture; and how many analogies are right, if any were asked."""
    chosen = config.show or frequent(vocabulary)
    rows = [
        (word, ", ".join(f"{n.word} {n.cosine:.2f}" for n in vectors.nearest([word], count=6)))
        for word in chosen
    ]
    run.tables.append(("Neighbours", ("word", "nearest words and their cosines"), rows))
    sections = vectors.answer(questions)
    if sections:
        run.tables.append(
            (
                "Analogies",
                ("kind", "right", "of", "left out: a word has no vector"),
                [(s.name, s.right, s.asked, s.left_out) for s in sections],
            )
        )
    near = [n.word for word in chosen for n in vectors.nearest([word], count=3)]
    picture(run, vectors, list(dict.fromkeys([*chosen, *near]))[:IN_PICTURE])
    asked = sum(s.asked for s in sections)
    if not asked:
        return {}
    right = sum(s.right for s in sections)
    return {"analogies right": right / asked, "analogies asked": asked}


def frequent(vocabulary: Vocabulary) -> list[str]:
    """Frequent words that say something: long ones; where words are characters, any."""
    top = vocabulary.words[:OF_FREQUENT]
    long = [word for word in top if len(word) >= SHORTEST and word.isalpha()]
    return (long or list(top))[:SHOWN]


def picture(run: Run, vectors: WordVectors, words: Sequence[str]) -> None:
    """The words on the plane on which they differ most, as PNG."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        run.tell(f"{PICTURE} is left out: it needs matplotlib (pip install 'trivium[plot]')")
        return
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title="Words by the two principal components of their vectors")
    places = vectors.plane(words)
    axes.scatter(places[:, 0], places[:, 1], s=8)
    for word, place in zip(words, places, strict=True):
        axes.annotate(word, place, (3, 2), textcoords="offset points", fontsize=8, parse_math=False)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of scripts that its font lacks
        figure.savefig(out, format="png", dpi=120)
    write_atomic(run.folder / PICTURE, out.getvalue())


def estimate(source: Documents, config: Config) -> dict[str, Any]:
    """What a dry run tells, from the size of the text alone."""
    words = source.bytes / 6
    size = min(words / 40, 1_000_000)
    seconds = words * (epochs_for(int(words), config) / 4e5 + 1 / 1e6)
    return {
        "words read": int(words) * epochs_for(int(words), config),
        "memory": int(2 * 4 * size * config.width + 3e8),
        "seconds (about)": round(seconds, 1),
    }
