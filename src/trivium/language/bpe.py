"""Byte-level BPE made from a text, and what a tokenizer costs: bytes per token.

Byte-pair encoding (Sennrich et al. 2016, over bytes as in GPT-2) begins with the 256 bytes and
joins, again and again, the pair of neighbours that occurs most often within words. So any Unicode
text can be spelled, and what is frequent is short. Each digit stays a token of its own, so that
numbers are spelled by place value. The library's trainer counts in parallel, from a stream of
pieces: the text may be larger than memory, the table of its different words may not.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import tokenizers
from tokenizers import AddedToken, decoders, models

from trivium.errors import NotFound, TriviumError, UsageError
from trivium.files import read_json
from trivium.gguf_file import GGUFFile
from trivium.language import gguf_tokenizer
from trivium.language.tokenizer import Tokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PIECE = 1 << 16  # characters
TOGETHER = 64  # pieces that are encoded at once


class Encoder(Protocol):
    def encode_many(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


@dataclass(frozen=True)
class Cost:
    """What a text takes."""

    bytes: int
    characters: int
    tokens: int

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(self.tokens, 1)

    @property
    def tokens_per_character(self) -> float:
        return self.tokens / max(self.characters, 1)


def train(
    texts: Iterable[str],
    vocab_size: int,
    *,
    special: Sequence[str] = SPECIAL,
    pattern: str = "digits",
) -> Tokenizer:
    """The tokenizer of a text. pattern: how words are cut, a key of gguf_tokenizer.PATTERNS.

    Fewer than `vocab_size` tokens come of a text too small for more: then every word is one token.
    """
    if pattern not in gguf_tokenizer.PATTERNS:
        known = ", ".join(gguf_tokenizer.PATTERNS)
        raise UsageError(f"no pattern {pattern!r} to cut words by; known: {known}")
    seen = _Seen(texts)
    tokenizer = Tokenizer.train(seen, vocab_size, special=special, pattern=pattern)
    if not seen.any:
        raise UsageError("there is no text to make a tokenizer from")
    return tokenizer


class _Seen:
    """Pieces of texts, and whether there were any."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts, self.any = texts, False

    def __iter__(self) -> Iterator[str]:
        for piece in pieces(self._texts):
            self.any = True
            yield piece


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """Texts, the long ones cut before a line (else a space), as words are cut there anyhow."""
    for text in texts:
        start = 0
        while len(text) - start > PIECE:
            window = text[start : start + PIECE]
            end = max(window.rfind("\n", 1), 0) or max(window.rfind(" ", 1), 0) or PIECE
            yield text[start : start + end]
            start += end
        if start < len(text):
            yield text[start:]


def cost(encoder: Encoder, texts: Iterable[str], *, check: bool = True) -> Cost:
    """What texts take. check: that they come back from their tokens, else TriviumError."""
    size = characters = tokens = 0
    stream = pieces(texts)
    while group := list(islice(stream, TOGETHER)):
        rows = encoder.encode_many(group)
        for text, ids in zip(group, rows, strict=True):
            size += len(text.encode())
            characters += len(text)
            tokens += len(ids)
            if check and encoder.decode(ids) != text:
                raise TriviumError(f"the tokenizer loses something of the text {text[:60]!r}…")
    if not size:
        raise UsageError("there is no text to measure a tokenizer on")
    return Cost(size, characters, tokens)


def published(path: Path) -> Tokenizer:
    """A published tokenizer: a GGUF file, or a folder with tokenizer.json or the two files of GPT-2
    (vocab.json and merges.txt, or encoder.json and vocab.bpe)."""
    if path.is_file() and path.suffix == ".gguf":
        return Tokenizer.from_gguf(GGUFFile(path).metadata)
    if not path.is_dir():
        raise NotFound(f"no such folder: {path}")
    for vocabulary, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if (path / vocabulary).is_file() and not (path / "tokenizer.json").is_file():
            return _gpt2(path / vocabulary, path / merges)
    return Tokenizer.from_folder(path)


def _gpt2(vocabulary: Path, merges: Path) -> Tokenizer:
    ids = read_json(vocabulary)
    try:
        lines = merges.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {merges}: {error}") from None
    pairs = [line.partition(" ") for line in lines if line and not line.startswith("#version")]
    try:
        library = tokenizers.Tokenizer(models.BPE(ids, [(one, other) for one, _, other in pairs]))
    except Exception as error:  # the library raises bare Exception for what it cannot read
        raise UsageError(f"{vocabulary} and {merges} do not fit: {error}") from None
    library.pre_tokenizer = gguf_tokenizer.byte_level("gpt-2")
    library.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    if end in ids:
        library.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    return Tokenizer(library, bos=ids.get(end), eos=ids.get(end))
