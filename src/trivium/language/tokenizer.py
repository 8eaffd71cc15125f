"""Text to token ids and back.

`Tokenizer` wraps one of the `tokenizers` library and keeps text apart from markup. Text that a
person, a file or a tool wrote is data: `encode(text)` never gives a control token for it, whatever
it spells (save the unknown token, for what a vocabulary lacks). Only markup that this program wrote
itself, by a chat template, is read with `special=True`.

    control token   a token that the model reads as structure: every token flagged special
                    (<|im_end|>, </s>), and every added one that looks like markup (<think>,
                    [INST]) and is not an HTML element
"""

import codecs
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from trivium.errors import NotFound, TriviumError, UsageError
from trivium.files import read_json, write_atomic

try:
    import tokenizers
    from tokenizers import AddedToken, decoders, models, trainers
except ModuleNotFoundError as error:
    raise TriviumError('text models need more packages: pip install "trivium[local]"') from error

from trivium.language import gguf_tokenizer, marked_text
from trivium.language.marked_text import Spans
from trivium.language.tokenizer_json import (
    BYTE_OF,
    add_configured,
    blind,
    read_text,
    role_tokens,
    speller,
)
from trivium.nn import heap

_MARKUP = re.compile(r"<.+>|\[.+\]|\|.+\|", re.DOTALL)
_HTML = re.compile(
    r"</?(table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|p|a|br|ul|ol|li|img|div|span"
    r"|strong|em|b|i|u|s|sub|sup|code|pre)>"
)
# Tokens that end a turn although a file may name only another one as its end token.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>")


class Tokenizer:
    """Encodes and decodes; `bos`, `eos`, `pad` are ids or None.

    `stop_ids` end the model's turn, `special_ids` are left out when decoding, and
    `control_tokens` (text to id) is what plain text can never produce.
    """

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        *,
        bos: int | None = None,
        eos: int | None = None,
        pad: int | None = None,
        stop_ids: Iterable[int] = (),
    ) -> None:
        library.no_padding()
        library.no_truncation()
        self.bos, self.eos, self.pad = bos, eos, pad
        self._marked = library
        added = library.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.control_tokens: Mapping[str, int] = {
            token.content: i
            for i, token in added.items()
            if token.special
            or (_MARKUP.fullmatch(token.content) and not _HTML.fullmatch(token.content))
        }
        ends = {self.control_tokens.get(name) for name in _TURN_ENDS}
        if "<|return|>" in self.control_tokens:  # here <|end|> closes a message, not the turn
            ends.discard(self.control_tokens.get("<|end|>"))
        ends |= {eos, *stop_ids}
        self.stop_ids = frozenset(i for i in ends if i is not None)
        self.vocab_size = max(library.get_vocab(with_added_tokens=True).values(), default=-1) + 1

        decoder = library.decoder  # which pickles as its part of tokenizer.json
        parts = {} if decoder is None else json.loads(decoder.__getstate__())
        self._spell, self._strips_space = speller(parts)
        self._added = {i: token.content.encode() for i, token in added.items()}
        self._bytes: dict[int, bytes] = {}
        # A text nobody can know in advance: what follows it is encoded as in the middle of a text.
        self._anchor = f"\ue000{secrets.token_hex(16)}\ue001"

    @cached_property
    def _blind(self) -> tuple[tokenizers.Tokenizer, int | None]:
        """The same tokenizer without its control tokens, and the id of its unknown token."""
        made = blind(self._marked.to_str(), self.control_tokens, self._anchor)
        heap.trim()
        return made

    def to_json(self) -> str:
        """The text of tokenizer.json."""
        return self._marked.to_str()

    def encode(self, text: str, *, special: bool = False, wrap: bool = False) -> list[int]:
        """The ids of `text`.

        special: read control tokens in `text` as such; only for markup this program wrote
        wrap: add what the model expects around a text of its own: <s>, or [CLS] … [SEP]
        """
        library = self._marked if special else self._blind[0]
        return _encoded(library, text, wrap=wrap).ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, as `encode` gives them; several at a time, by the library."""
        try:
            found = self._blind[0].encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            return [self.encode(text) for text in texts]  # says which of them is no text
        return [encoding.ids for encoding in found]

    def encode_marked(self, text: str, disguise: Mapping[str, str]) -> list[int]:
        """The ids of markup that holds untrusted parts.

        In those parts, each character that could begin a control token stands disguised as another
        that is nowhere else (`disguise`: real to stand-in). So whatever the parts were joined with,
        the control tokens found are those of the markup. Without any it is `encode(special=True)`.
        """
        return self.encode_spans(text, disguise)[0]

    def encode_spans(self, text: str, disguise: Mapping[str, str]) -> tuple[list[int], Spans]:
        """`encode_marked`, and from where to where in `text` each token reaches."""
        encoding = _encoded(self._marked, text)
        if not any(stand_in in text for stand_in in disguise.values()):
            return encoding.ids, encoding.offsets
        plain, unknown = self._blind
        markup = {i: token for token, i in self.control_tokens.items()}
        return marked_text.encode(text, disguise, encoding, markup, plain, unknown, self._anchor)

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token adds to the text; none for an id that stands for no token."""
        if id not in self._bytes:
            if self._spell is None:
                raise UsageError("this tokenizer does not spell text token by token (WordPiece?)")
            token = self._marked.id_to_token(id)
            self._bytes[id] = self._added.get(id) or (self._spell(token) if token else b"")
        return self._bytes[id]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD, as Unicode recommends."""
        if self._spell is None:
            return self._marked.decode(list(ids), skip_special_tokens=skip_special)
        skipped = self.special_ids if skip_special else frozenset()
        text = b"".join(self.token_bytes(i) for i in ids if i not in skipped).decode(
            errors="replace"
        )
        return text.removeprefix(" ") if self._strips_space else text

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a Hugging Face model folder."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise NotFound(
                f"no tokenizer.json in {folder}: trivium reads the fast tokenizer format, which "
                "transformers writes with save_pretrained()"
            )
        try:
            library = tokenizers.Tokenizer.from_str(read_text(path))
        except UsageError:
            raise
        except Exception as error:  # the library raises bare Exception for what it cannot read
            raise UsageError(f"cannot read {path}: {error}") from error
        config = read_json(folder / "tokenizer_config.json", optional=True)
        special = read_json(folder / "special_tokens_map.json", optional=True)
        names = role_tokens({**special, **config})
        add_configured(library, config.get("added_tokens_decoder") or {}, names.values())
        ids = {role: library.token_to_id(name) for role, name in names.items()}
        model = read_json(folder / "config.json", optional=True)
        generation = read_json(folder / "generation_config.json", optional=True)
        stops: list[int] = []
        for value in (model.get("eos_token_id"), generation.get("eos_token_id")):
            stops += value if isinstance(value, list) else [] if value is None else [value]
        eos = ids.get("eos", stops[0] if stops else None)
        return cls(
            library,
            bos=ids.get("bos", model.get("bos_token_id")),
            eos=eos,
            pad=ids.get("pad", model.get("pad_token_id")),
            stop_ids=stops,
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer of a GGUF file, from its metadata."""

        def id_of(name: str) -> int | None:
            return gguf_tokenizer.token_id(metadata, name)

        library = gguf_tokenizer.build(metadata)
        stops = [i for i in map(id_of, ("eot", "eom")) if i is not None]
        return cls(
            library, bos=id_of("bos"), eos=id_of("eos"), pad=id_of("padding"), stop_ids=stops
        )

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        special: Sequence[str] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        pattern: str = "digits",
    ) -> "Tokenizer":
        """Train byte-level BPE (Sennrich et al. 2016, over bytes as in GPT-2) on `texts`.

        Any Unicode text can be encoded, since all 256 bytes are tokens. The first of `special`
        begins, ends and pads texts. pattern: how words are cut, a key of gguf_tokenizer.PATTERNS.
        """
        least = 256 + len(special)
        if vocab_size < least:
            raise UsageError(
                f"vocab_size {vocab_size} is too small: 256 bytes and {len(special)} special "
                f"tokens need at least {least}"
            )
        if not special:
            raise UsageError("a tokenizer needs at least one special token, which ends a text")
        library = tokenizers.Tokenizer(models.BPE())
        library.pre_tokenizer = gguf_tokenizer.byte_level(pattern)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(t, special=True, normalized=False) for t in special],
            initial_alphabet=sorted(BYTE_OF),
            show_progress=False,
        )
        library.train_from_iterator(texts, trainer)
        return cls(library, bos=0, eos=0, pad=0)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and the two small files beside it that name the special ids."""

        def name(id: int | None) -> str | None:
            return None if id is None else self._marked.id_to_token(id)

        roles = {"bos": self.bos, "eos": self.eos, "pad": self.pad}
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {f"{role}_token": name(id) for role, id in roles.items() if id is not None}
        generation: dict[str, Any] = read_json(folder / "generation_config.json", optional=True)
        generation |= {f"{role}_token_id": id for role, id in roles.items() if id is not None}
        generation["eos_token_id"] = sorted(self.stop_ids)
        write_atomic(folder / "tokenizer.json", self._marked.to_str(pretty=True))
        for file, content in (("tokenizer_config", config), ("generation_config", generation)):
            text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
            write_atomic(folder / f"{file}.json", text)


class StreamDecoder:
    """Decodes one token at a time; what `push` and `flush` return joins to `decode(ids)`.

    A character is held back until its last byte is there. Each push costs the same however long the
    text has grown.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = tokenizer._strips_space

    def push(self, id: int) -> str:
        """The text that `id` completes, which may be empty."""
        if id in self._skipped:
            return ""
        return self._text(self._utf8.decode(self._tokenizer.token_bytes(id)))

    def flush(self) -> str:
        """The end of the text: U+FFFD if it stopped within a character. Then a new text begins."""
        text = self._text(self._utf8.decode(b"", final=True))
        self._utf8.reset()
        self._strip = self._tokenizer._strips_space
        return text

    def _text(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class StopStrings:
    """Cuts a stream of text at the first stop string, wherever the pieces of the stream end.

    The first is the one that ends first, and of those the longest. Only text that may still become
    a stop string is held back (Aho & Corasick 1975: constant time a character for any number of
    stop strings).
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._next: dict[tuple[int, str], int] = {}
        self._fallback, self._depth, self._match = [0], [0], [0]
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise UsageError(f"a stop string must be text that is not empty, not {stop!r}")
            self._add(stop)
        self._link()
        self._state, self._held, self.stopped = 0, "", False

    def _add(self, stop: str) -> None:
        state = 0
        for char in stop:
            key = (state, char)
            if key not in self._next:
                self._next[key] = len(self._depth)
                self._depth.append(self._depth[state] + 1)
                self._fallback.append(0)
                self._match.append(0)
            state = self._next[key]
        self._match[state] = len(stop)

    def _link(self) -> None:
        """Give each state the longest proper suffix that also begins a stop string."""
        # States were made parents first, but a suffix may have been added later: go by depth.
        for (state, char), child in sorted(self._next.items(), key=lambda e: self._depth[e[1]]):
            if state:
                self._fallback[child] = self._step(self._fallback[state], char)
            self._match[child] = self._match[child] or self._match[self._fallback[child]]

    def _step(self, state: int, char: str) -> int:
        while state and (state, char) not in self._next:
            state = self._fallback[state]
        return self._next.get((state, char), 0)

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was met: nothing follows it."""
        if self.stopped:
            return "", True
        state, begin = self._state, len(self._held)
        pending = self._held + text
        for i, char in enumerate(text, start=begin + 1):
            state = self._step(state, char)
            if self._match[state]:
                self.stopped, self._held = True, ""
                return pending[: i - self._match[state]], True
        self._state = state
        cut = len(pending) - self._depth[state]
        self._held = pending[cut:]
        return pending[:cut], False

    def flush(self) -> str:
        """What was held back, at the end of the text. Then a new text begins."""
        held, self._state, self._held, self.stopped = self._held, 0, "", False
        return held


def _encoded(
    library: tokenizers.Tokenizer, text: str, *, wrap: bool = False
) -> tokenizers.Encoding:
    try:
        return library.encode(text, add_special_tokens=wrap)
    except TypeError:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text holds half a surrogate pair (U+{ord(text[error.start]):04X}) at "
                f"character {error.start}, which is no Unicode text: decode its source as UTF-8"
            ) from error
        raise
