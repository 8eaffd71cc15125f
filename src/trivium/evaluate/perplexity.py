"""Perplexity: how surprised a language model is by a text (Jelinek et al. 1977).

    mean = 1/N Σ −ln P(token i | the tokens before it)        perplexity = e^mean

A text is longer than a context, so a window of `context` tokens slides over it by `stride` tokens.
The first window scores all its tokens; each later one reads the `context − stride` tokens before
its new ones again and scores the new ones alone. So every token is scored once, and behind the
first window each sees at least `context − stride` tokens before it: a short stride is slower, and
nearer to the model's true perplexity. It is the strided evaluation of transformers' guide on
perplexity. llama.cpp's program skips the first half of each window instead.

Where the tokenizer begins texts with a token of its own (<s>), so does every window, and the first
token of the text is scored behind it. Elsewhere nothing stands before the first token: it is read
and not scored.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch

from trivium.errors import TriviumError, UsageError
from trivium.evaluate.likelihood import read_scoring
from trivium.language.engine import Engine
from trivium.language.slots import Slot
from trivium.language.tokenizer import Tokenizer

CONTEXT = 1024  # tokens, unless told otherwise
PIECE = 1 << 16  # characters that are encoded at once


class TooShort(UsageError):
    """The text has no token that could be scored."""


@dataclass(frozen=True)
class Perplexity:
    """What was found on the text so far.

    tokens   how many were scored
    bytes    of the text that they spell, in UTF-8
    nll      Σ −ln P, in nats
    squares  Σ (ln P)²
    """

    tokens: int = 0
    bytes: int = 0
    nll: float = 0.0
    squares: float = 0.0

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.mean)

    @property
    def bits_per_token(self) -> float:
        return self.mean / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """Does not depend on how a tokenizer cuts the text: comparable between all models."""
        return self.nll / math.log(2) / self.bytes

    @property
    def mean_error(self) -> float:
        """The standard error of `mean`, as if tokens were independent; 0 for a single one."""
        if self.tokens < 2:
            return 0.0
        variance = (self.squares - self.nll * self.mean) / (self.tokens - 1)
        return math.sqrt(max(variance, 0) / self.tokens)

    @property
    def perplexity_error(self) -> float:
        """To first order."""
        return self.perplexity * self.mean_error


def measure(
    engine: Engine,
    texts: Iterable[str],
    *,
    context: int | None = None,
    stride: int | None = None,
) -> Iterator[Perplexity]:
    """The perplexity of a text that comes in parts of any length, after each window of it.

    The last value is that of the whole text. context: tokens a window holds, at most those of the
    model (default: 1,024); stride: new tokens a window (default: half of it). Of the text, only a
    part and a window are held. Raises TooShort, and UsageError for a window that does not fit.
    """
    context, stride = _window(engine, context, stride)
    start = _start(engine.tokenizer)
    text = _Text(engine.tokenizer, texts)
    so_far, unscored = Perplexity(), 0
    for window, fresh in _windows(text, context - len(start), stride):
        known, targets = [*start, *window[:-fresh]], window[-fresh:]
        if not known:
            unscored = len(engine.tokenizer.token_bytes(window[0]))
            known, targets = targets[:1], targets[1:]
            if not targets:
                raise TooShort(
                    "the text is a single token, with nothing before it that could make it likely: "
                    "give a longer one"
                )
        so_far = _add(so_far, engine, known, targets)
        yield so_far
    if not so_far.tokens:
        raise TooShort("the text is empty")
    yield replace(so_far, bytes=text.bytes - unscored)


def _window(engine: Engine, context: int | None, stride: int | None) -> tuple[int, int]:
    most, name = engine.context, engine.language_model.name
    context = min(CONTEXT, most) if context is None else context
    if not 2 <= context <= most:
        raise UsageError(f"a window of {name} holds 2 to {most} tokens, not {context}")
    stride = context // 2 if stride is None else stride
    if not 1 <= stride < context:
        raise UsageError(
            f"with a window of {context} tokens the stride is 1 to {context - 1} tokens, not "
            f"{stride}"
        )
    return context, stride


def _start(tokenizer: Tokenizer) -> list[int]:
    bos = tokenizer.bos
    return [bos] if bos is not None and bos in tokenizer.encode("", wrap=True) else []


def _windows(ids: Iterable[int], size: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """Each window and how many of its tokens, the last ones, are new."""
    source = iter(ids)
    window = list(islice(source, size))
    if window:
        yield window, len(window)
    while fresh := list(islice(source, stride)):
        window = [*window[stride - size :], *fresh] if stride < size else fresh
        yield window, len(fresh)


def _add(
    so_far: Perplexity, engine: Engine, known: Sequence[int], targets: Sequence[int]
) -> Perplexity:
    nll = squares = 0.0
    for piece, logprobs in read_scoring(engine, Slot(), known, targets):
        own = logprobs[torch.arange(len(piece)), torch.tensor(piece)].double()
        nll -= float(own.sum())
        squares += float(own.square().sum())
    if not math.isfinite(nll):
        raise TriviumError(
            f"{engine.language_model.name} holds a token of the text for impossible (−log P = "
            f"{nll}): its weights are broken, or its precision is too low (try float32)"
        )
    spelled = sum(len(engine.tokenizer.token_bytes(id)) for id in targets)
    return Perplexity(
        so_far.tokens + len(targets),
        so_far.bytes + spelled,
        so_far.nll + nll,
        so_far.squares + squares,
    )


class _Text:
    """The ids of a text that comes in parts, as if it were encoded whole. `bytes`: read so far."""

    def __init__(self, tokenizer: Tokenizer, parts: Iterable[str]) -> None:
        self._tokenizer, self._parts = tokenizer, parts
        self.bytes = 0

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._encoded())

    def _encoded(self) -> Iterator[list[int]]:
        # Behind a line break a text goes on as within it: no <space> is put before its first word.
        before = self._tokenizer.encode("\n")
        for number, piece in enumerate(pieces(self._parts)):
            self.bytes += len(piece.encode())
            ids = self._tokenizer.encode(f"\n{piece}") if number else []
            goes_on = bool(number) and ids[: len(before)] == before
            yield ids[len(before) :] if goes_on else self._tokenizer.encode(piece)


def pieces(parts: Iterable[str], size: int = PIECE) -> Iterator[str]:
    """The text that `parts` make, cut where tokenizers cut it too: before a line, else before a
    word. Only in `size` characters without a space is the cut a chance one."""
    held = ""
    for part in parts:
        held += part
        start = 0
        while len(held) - start > size:
            end = start + _border(held[start : start + size + 1])
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def _border(text: str) -> int:
    for separator, width in (("\n", 1), (" ", 0)):
        place = text.rfind(separator, 1, -1)
        while place > 0:
            if not text[place + 1].isspace() and (width or not text[place - 1].isspace()):
                return place + width
            place = text.rfind(separator, 1, place)
    return len(text) - 1
