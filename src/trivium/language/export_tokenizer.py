"""A tokenizer as the metadata of a GGUF file: the inverse of `gguf_tokenizer`.

The format has no place for everything that a tokenizer.json can say, so what was written is built
again, and must give the same tokens for texts of many kinds; otherwise the export is refused.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import tokenizers
from gguf.constants import TokenType

from trivium.errors import UsageError
from trivium.language.gguf_tokenizer import PATTERNS, SPLITS, WHOLE_WORDS, byte_level
from trivium.language.tokenizer import Tokenizer

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# In composed form (NFC), which some tokenizers bring their input into and GGUF has no word for.
PROBES = (
    "",
    " ",
    "Hello, world! It's 1234567 o'clock; we'll see… I'VE done 3.14%",
    "  two  spaces\n\n\nthree lines\r\n\ttabs\t\t end  ",
    "def f(x_1: int) -> str:\n    return f'{x_1!r}' if x_1 >= 10 else \"<a href='#'>$5</a>\"",
    "Ünïcödé naïve café Straße ÅNGSTRÖM ﬁ Ⅷ ² ½",
    "中文字符，日本語のテキスト。한국어 문장 ไทย हिन्दी العربية עברית Ελληνικά Русский",
    "🙂👩‍👩‍👧🏽 \u200b\ufeff ▁under ##hash [MASK] <0x41> CamelCaseWords ALLCAPS",
)


def metadata(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The keys `tokenizer.ggml.…` for a model with `vocab_size` rows of embeddings.

    Raises UsageError where the format cannot hold the tokenizer.
    """
    spec = json.loads(tokenizer.to_json())
    kind = _kind(spec)
    tokens, types = _tokens(spec, vocab_size)
    values = {
        "model": kind,
        "pre": "default",
        "tokens": tokens,
        "token_type": types,
        **_special_ids(tokenizer, spec),
    }
    if kind == "gpt2":
        values |= {"pre": _pre(tokenizer, spec), "merges": _merges(spec)}
    elif kind == "llama":
        values |= {"scores": _scores(spec, tokens), "add_space_prefix": _adds_space(spec)}
    else:
        values |= {"tokens": _word_starts(tokens, types), "token_type_count": 2}
    written = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    _verify(tokenizer, written)
    return written


def _kind(spec: Mapping[str, Any]) -> str:
    model = spec["model"]
    kind = model.get("type")
    if kind == "WordPiece":
        return "bert"
    if kind == "BPE":
        parts = json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
        return "gpt2" if '"ByteLevel"' in parts else "llama"
    raise UsageError(f"a tokenizer of kind {kind} cannot be written as GGUF: export a folder")


def _tokens(spec: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """The text and type of every id; those that stand for nothing are named, none is left out."""
    vocabulary = dict(spec["model"]["vocab"])
    added = {token["id"]: token for token in spec["added_tokens"]}
    texts = {id: text for text, id in vocabulary.items()}
    texts |= {id: token["content"] for id, token in added.items()}
    tokens, types = [], []
    for id in range(max(vocab_size, max(texts) + 1)):
        text = texts.get(id)
        if text is None:
            kind = TokenType.UNUSED
        elif text == spec["model"].get("unk_token"):
            kind = TokenType.UNKNOWN
        elif id in added:
            kind = TokenType.CONTROL if added[id]["special"] else TokenType.USER_DEFINED
        elif spec["model"].get("byte_fallback") and BYTE_TOKEN.fullmatch(text):
            kind = TokenType.BYTE
        else:
            kind = TokenType.NORMAL
        tokens.append(f"[PAD{id}]" if text is None else text)
        types.append(int(kind))
    return tokens, types


def _special_ids(tokenizer: Tokenizer, spec: Mapping[str, Any]) -> dict[str, Any]:
    ids: dict[str, Any] = {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "padding_token_id": tokenizer.pad,
        "unknown_token_id": spec["model"]["vocab"].get(spec["model"].get("unk_token")),
    }
    frame = tokenizer.encode("", wrap=True)
    if spec["model"]["type"] == "WordPiece":
        ids |= dict(zip(("cls_token_id", "seperator_token_id"), frame, strict=False))
        ids["mask_token_id"] = spec["model"]["vocab"].get("[MASK]")
    else:
        ids["add_bos_token"] = tokenizer.bos is not None and frame[:1] == [tokenizer.bos]
        ids["add_eos_token"] = tokenizer.eos in frame[int(ids["add_bos_token"]) :]
    others = sorted(tokenizer.stop_ids - {tokenizer.eos})
    ids |= dict(zip(("eot_token_id", "eom_token_id"), others, strict=False))
    return {name: id for name, id in ids.items() if id is not None}


def _merges(spec: Mapping[str, Any]) -> list[str]:
    merges = spec["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _pre(tokenizer: Tokenizer, spec: Mapping[str, Any]) -> str:
    """The name of the way this tokenizer cuts text into words, found by cutting the probes."""
    wanted = _pieces(tokenizers.Tokenizer.from_str(tokenizer.to_json()).pre_tokenizer)
    whole = bool(spec["model"].get("ignore_merges"))
    for name, pattern in SPLITS.items():
        if (name in WHOLE_WORDS) != whole:
            continue
        if _pieces(byte_level(pattern)) == wanted:
            return name
    raise UsageError(
        f"GGUF has no name for the way this tokenizer cuts words ({len(PATTERNS)} are known): "
        "export a folder"
    )


def _pieces(cutter: Any) -> list[str]:
    return [piece for text in PROBES for piece, _ in cutter.pre_tokenize_str(text)]


def _scores(spec: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """SentencePiece's order of merging: a token is worth the more, the earlier it is made."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(_merges(spec)):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    return [float(-ranks.get(token, len(ranks))) for token in tokens]


def _adds_space(spec: Mapping[str, Any]) -> bool:
    parts = json.dumps([spec.get("normalizer"), spec.get("pre_tokenizer")])
    return '"Prepend"' in parts or '"prepend_scheme": "first"' in parts


def _word_starts(tokens: list[str], types: list[int]) -> list[str]:
    """BERT marks what goes on in a word with ##; GGUF marks with ▁ what begins one."""

    def spelled(token: str, kind: int) -> str:
        if kind != TokenType.NORMAL or (token.startswith("[") and token.endswith("]")):
            return token
        return token[2:] if token.startswith("##") else f"▁{token}"

    return [spelled(token, kind) for token, kind in zip(tokens, types, strict=True)]


def _verify(tokenizer: Tokenizer, written: Mapping[str, Any]) -> None:
    again = Tokenizer.from_gguf(written)
    marked = "".join(sorted(tokenizer.control_tokens))
    for text in PROBES:
        same = all(
            tokenizer.encode(text, wrap=wrap) == again.encode(text, wrap=wrap)
            for wrap in (False, True)
        )
        if not same:
            raise UsageError(
                f"GGUF cannot hold this tokenizer (it reads {text[:20]!r} in another way): "
                "export a folder"
            )
    if tokenizer.encode(marked, special=True) != again.encode(marked, special=True):
        raise UsageError("GGUF cannot hold the control tokens of this tokenizer: export a folder")
