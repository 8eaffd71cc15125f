"""How likely a model finds a given text: log P(token | the tokens before it).

The logits of a long text are never held whole, only those of a few of its tokens at a time.

T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trivium.language.engine import Engine
from trivium.language.sampling import log_probabilities
from trivium.language.slots import Slot

LOGITS = 8 << 20  # numbers held at once: 32 MB, and as much again for the logarithms


@dataclass(frozen=True)
class Scored:
    """A token of a text, as likely as the model found it, and what it found likelier or next
    likely: pairs of id and log-probability, best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def read_scoring(
    engine: Engine, slot: Slot, known: Sequence[int], targets: Sequence[int]
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Read `known` and then `targets` into a slot, which may hold a beginning of `known`.

    Yields the targets in pieces, each with log P of the whole vocabulary at its places, float32
    (T, V). What is yielded covers every target once. Neither may be empty.
    """
    yield targets[:1], log_probabilities(engine.read(slot, known))[None]
    rows = max(1, min(engine.chunk, LOGITS // engine.model.config.vocab_size))
    for start in range(0, len(targets) - 1, rows):
        piece = targets[start : start + rows + 1]
        (logits,) = engine.extend([slot], [piece[:-1]])
        yield piece[1:], log_probabilities(logits)


def score(
    engine: Engine, known: Sequence[int], targets: Sequence[int], *, top: int = 0
) -> list[Scored]:
    """How likely each target is behind `known` and the targets before it, and the `top` likeliest
    tokens in its place.

    Raises ContextOverflow, and UsageError if `known` is empty. The text stays cached.
    """
    engine.room([*known, *targets[:-1]], None)
    slot, _ = engine.slots.acquire(known)
    found: list[Scored] = []
    try:
        for piece, logprobs in read_scoring(engine, slot, known, targets) if targets else ():
            best = torch.topk(logprobs, min(top, logprobs.shape[-1]))
            own = logprobs[torch.arange(len(piece)), torch.tensor(piece)]
            rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            for id, logprob, (ids, values) in zip(piece, own.tolist(), rows, strict=True):
                found.append(Scored(id, logprob, tuple(zip(ids, values, strict=True))))
        return found
    finally:
        engine.slots.release(slot)
