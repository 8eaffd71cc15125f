"""Word vectors by negative sampling (Mikolov et al. 2013): one pass over a part of a text.

At each position the word o stands among context words c. A logistic regression tells it from K
words n drawn from the noise, of which each word has a share ∝ count^0.75:

    loss = −log σ(u_o · x) − Σ_n log σ(−u_n · x)

    skip-gram   x is v_c, for each context word c       CBOW   x is the mean of the v_c

with one gradient step for each position. Its context words share the K noise words (Ji et al.
2016). A context reaches 1 to `window` words to each side, drawn anew at each position. Frequent
words are left out at random: kept with √(t/f) + t/f, for a share f of the text.

    V words, D numbers a vector, R context words, K noise words

`native` is the compiled kernel, word2vec.c, in threads that write without locks. `portable` is the
same in PyTorch, many positions at a time; it is used where there is no compiler.
"""

import ctypes
import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trivium.nn import native

LANES = 16  # numbers in a register: rows are padded to a multiple of it
MOST_ROWS = 64  # of a position, as word2vec.c has it
ALWAYS = (1 << 32) - 1
POSITIONS = 64  # that `portable` takes together, at most: their steps add up

Array = NDArray[Any]


@dataclass(frozen=True)
class Tables:
    """What is learnt, and what is drawn from.

    inputs, outputs  (V, stride) float32: v and u; stride is D and zeros up to a multiple of 16
    keep             (V,) uint32: of 2³², how often an occurrence is kept
    chance, alias    (V,) the noise, as Walker's alias table
    """

    inputs: Array
    outputs: Array
    keep: Array
    chance: Array
    alias: Array
    window: int
    negative: int
    cbow: bool


@dataclass
class Found:
    """What a pass saw: positions, and the mean loss over some of them."""

    positions: int = 0
    loss: float = 0.0
    judged: int = 0

    def add(self, positions: float, loss: float, judged: float) -> None:
        self.positions += int(positions)
        self.loss += loss
        self.judged += int(judged)

    @property
    def mean(self) -> float:
        return self.loss / max(self.judged, 1)


def stride_of(width: int) -> int:
    return -(-width // LANES) * LANES


def kept(counts: Array, threshold: float) -> Array:
    """(V,) uint32. threshold: t; 0 keeps all."""
    if threshold <= 0:
        return np.full(len(counts), ALWAYS, np.uint32)
    ratio = threshold * counts.sum() / counts
    return (np.minimum(np.sqrt(ratio) + ratio, 1) * ALWAYS).astype(np.uint32)


def alias_table(shares: Array) -> tuple[Array, Array]:
    """Walker's table (1977; Vose 1991): draw i evenly, and take alias[i] unless a second draw is
    below chance[i] / 2³²."""
    size = len(shares)
    scaled = np.asarray(shares, np.float64) * size / np.sum(shares)
    chance, alias = np.ones(size), np.arange(size, dtype=np.int32)
    small = [i for i in range(size) if scaled[i] < 1]
    large = [i for i in range(size) if scaled[i] >= 1]
    while small and large:
        low, high = small.pop(), large[-1]
        chance[low], alias[low] = scaled[low], high
        scaled[high] -= 1 - scaled[low]
        if scaled[high] < 1:
            small.append(large.pop())
    return (chance.clip(0, 1) * ALWAYS).astype(np.uint32), alias


class _Struct(ctypes.Structure):
    """`struct Tables` of word2vec.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("inputs", "outputs", "keep", "chance", "alias")),
        *((name, ctypes.c_int32) for name in ("words", "stride", "window", "negative", "cbow")),
    )


@functools.cache
def _kernel() -> Any:
    path = native.compiled(Path(__file__).with_name("word2vec.c"), (), ("-ffp-contract=fast",))
    return None if path is None else ctypes.CDLL(str(path)).trivium_word2vec


def kernel() -> Any:
    """The compiled function; None where it cannot be had, or must not (TRIVIUM_NATIVE=0)."""
    return None if os.environ.get("TRIVIUM_NATIVE") == "0" else _kernel()


def advance(
    tables: Tables, ids: Array, rate: float, last: float, states: Array, found: Found
) -> None:
    """Learn from the words `ids`, -1 between texts; the rate falls from `rate` to `last`.

    states: (threads,) uint64, of the random numbers of each thread; they go on from call to call.
    """
    function = kernel()
    if function is None:
        portable(tables, ids, rate, last, states, found)
    else:
        _native(function, tables, ids, rate, last, states, found)


def _native(
    function: Any, t: Tables, ids: Array, rate: float, last: float, states: Array, found: Found
) -> None:
    arrays = (t.inputs, t.outputs, t.keep, t.chance, t.alias)
    pointers = [array.ctypes.data for array in arrays]
    struct = _Struct(*pointers, *t.inputs.shape, t.window, t.negative, t.cbow)
    parts = np.array_split(np.ascontiguousarray(ids, np.int32), len(states))
    results = np.zeros((len(states), 3))

    def work(number: int) -> None:
        part = parts[number]
        function(
            ctypes.byref(struct),
            ctypes.c_void_p(part.ctypes.data),
            ctypes.c_int64(len(part)),
            ctypes.c_float(rate),
            ctypes.c_float(last),
            ctypes.c_void_p(states[number:].ctypes.data),
            ctypes.c_void_p(results[number].ctypes.data),
        )

    if len(states) == 1:
        work(0)
    else:
        with ThreadPoolExecutor(len(states)) as pool:
            list(pool.map(work, range(len(states))))
    for row in results:
        found.add(*row)


def portable(t: Tables, ids: Array, rate: float, last: float, states: Array, found: Found) -> None:
    """One thread; the first of `states` seeds what is drawn, and moves on."""
    random = np.random.default_rng(int(states[0]))
    inputs, outputs = torch.from_numpy(t.inputs), torch.from_numpy(t.outputs)
    done, together = 0, max(min(POSITIONS, len(t.keep) // 8), 1)
    for text in _texts(ids):
        draws = random.integers(0, ALWAYS, len(text), dtype=np.uint32)
        words = text[(t.keep[text] == ALWAYS) | (draws < t.keep[text])]
        for start in range(0, len(words), together):
            now = rate + (last - rate) * (done + start) / max(len(ids), 1)
            places = np.arange(start, min(start + together, len(words)))
            contexts, mask = _contexts(words, places, t.window, random)
            some = mask.any(axis=1)
            targets = _targets(t, words[places], random)
            around, counted, true_and_noise = (
                torch.from_numpy(part[some]) for part in (contexts, mask, targets)
            )
            loss = step(inputs, outputs, around, counted, true_and_noise, now, cbow=t.cbow)
            found.add(some.sum(), float(loss.sum()), some.sum())
        done += len(text)
    states[0] = random.integers(0, 1 << 63)


def _texts(ids: Array) -> Iterator[Array]:
    for part in np.split(ids, np.flatnonzero(ids < 0)):
        yield part[part >= 0]


def _contexts(
    words: Array, places: Array, window: int, random: np.random.Generator
) -> tuple[Array, Array]:
    """The words around each place: (P, 2 window), and which of them count."""
    offsets = np.array([*range(-window, 0), *range(1, window + 1)])
    reach = random.integers(1, window + 1, len(places))
    around = places[:, None] + offsets
    mask = (np.abs(offsets) <= reach[:, None]) & (around >= 0) & (around < len(words))
    return words[np.where(mask, around, 0)].astype(np.int64), mask


def _targets(t: Tables, words: Array, random: np.random.Generator) -> Array:
    """Each word and its noise words, which are others: (P, 1 + K)."""
    targets = np.repeat(words[:, None].astype(np.int64), 1 + t.negative, axis=1)
    for _ in range(100):
        same = targets[:, 1:] == targets[:, :1]
        if not (many := int(same.sum())):
            break
        drawn = random.integers(0, len(t.chance), many)
        fair = random.integers(0, ALWAYS, many, dtype=np.uint32) < t.chance[drawn]
        targets[:, 1:][same] = np.where(fair, drawn, t.alias[drawn])
    return targets


def step(
    inputs: Tensor,
    outputs: Tensor,
    contexts: Tensor,
    mask: Tensor,
    targets: Tensor,
    rate: float,
    *,
    cbow: bool,
) -> Tensor:
    """One gradient step for positions together: contexts and mask (P, R), targets (P, 1 + K), of
    which the first is the true one. Changes inputs and outputs; returns the losses: (P,)."""
    x = inputs[contexts] * mask[..., None]  # (P, R, D)
    many = mask.sum(dim=1, keepdim=True).to(x.dtype).clamp(min=1)  # (P, 1)
    y = outputs[targets]  # (P, 1 + K, D)
    h = x.sum(dim=1, keepdim=True) / many[..., None] if cbow else x  # (P, 1 or R, D)
    scores = h @ y.transpose(1, 2)  # (P, 1 or R, 1 + K)
    label = torch.zeros_like(scores)
    label[..., 0] = 1
    signed = torch.where(label > 0, scores, -scores)
    error = rate * (label - torch.sigmoid(scores))
    losses = -torch.nn.functional.logsigmoid(signed).sum(dim=2)
    if not cbow:
        error, losses = error * mask[..., None], losses * mask
    gradient = error @ y  # (P, 1 or R, D)
    if cbow:
        gradient = (gradient / many[..., None]).expand_as(x) * mask[..., None]
    outputs.index_add_(0, targets.flatten(), (error.transpose(1, 2) @ h).flatten(0, 1))
    inputs.index_add_(0, contexts.flatten(), gradient.flatten(0, 1))
    return losses.sum(dim=1) / (1 if cbow else many[:, 0])
