"""tokenizer.json as data: the files beside it, how its tokens are spelled, and a copy of it that is
blind to control tokens."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from trivium.errors import UsageError

_ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")


def without(spec: dict[str, Any], control: Mapping[str, int]) -> dict[str, Any]:
    """A tokenizer.json that cannot produce `control`: not as added tokens, nor by its model.

    In the vocabulary such a token takes a name that begins with a space, which no text reaches,
    since every model sees spaces spelled otherwise; so all ids stay as they are.
    """
    model, added = spec["model"], spec["added_tokens"]
    vocabulary: Any
    hidden = {text: f" {id}" for text, id in control.items()}
    names = {token["content"]: token["id"] for token in added}
    if isinstance(model["vocab"], dict):
        vocabulary = {hidden.get(text, text): id for text, id in (model["vocab"] | names).items()}
    else:  # Unigram: pieces with scores, whose place is their id
        vocabulary = [[hidden.get(text, text), score] for text, score in model["vocab"]]
        later = sorted((id, text) for text, id in names.items() if id >= len(vocabulary))
        vocabulary += [[hidden.get(text, text), -1e9] for _, text in later]
    model = model | {"vocab": vocabulary}
    if model.get("unk_token") is not None:
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & control.keys()]
    kept = [token for token in added if token["content"] not in control]
    return spec | {"model": model, "added_tokens": kept}


def unknown_id(model: Mapping[str, Any]) -> int | None:
    """The id of the token that stands for text which the vocabulary lacks."""
    if "unk_id" in model:  # Unigram
        id: int | None = model["unk_id"]
    else:
        id = model["vocab"].get(model.get("unk_token"))
    return id


def blind(
    text: str, control: Mapping[str, int], anchor: str
) -> tuple[tokenizers.Tokenizer, int | None]:
    """The tokenizer of a tokenizer.json without its control tokens but with `anchor`, and the id of
    its unknown token."""
    spec = json.loads(text)
    plain = tokenizers.Tokenizer.from_str(json.dumps(without(spec, control)))
    plain.add_special_tokens([AddedToken(anchor, special=True, normalized=False)])
    return plain, unknown_id(spec["model"])


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: itself where printable, otherwise the next letter from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _spell_bytes(token: str) -> bytes:
    try:
        return bytes(BYTE_OF[char] for char in token)
    except KeyError:
        return token.encode()


def _spell_piece(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def speller(decoder: Mapping[str, Any]) -> tuple[Callable[[str], bytes] | None, bool]:
    """How the decoder of a tokenizer.json spells a token, and whether it strips a leading space."""
    steps = decoder.get("decoders") or [decoder]
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return _spell_bytes, False
    if kinds & {"ByteFallback", "Metaspace"}:
        strips = any(
            step.get("start", 0) > 0 or step.get("prepend_scheme", "never") != "never"
            for step in steps
        )
        return _spell_piece, strips
    return None, False


def read_text(path: Path) -> str:
    """The text of a file of a model. Raises UsageError if it is not UTF-8."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {path}: not UTF-8 text") from error


def role_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the tokens that have a role: {"bos": "<s>", …}."""
    tokens = {}
    for role in _ROLES:
        token = config.get(f"{role}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            tokens[role] = text
    return tokens


def add_configured(
    library: tokenizers.Tokenizer, listed: Mapping[str, Any], roles: Iterable[str]
) -> None:
    """Add the tokens that tokenizer_config.json knows and tokenizer.json does not."""
    present = {token.content: token for token in library.get_added_tokens_decoder().values()}
    for token in sorted(listed.items(), key=lambda item: int(item[0])):
        fields = {k: v for k, v in token[1].items() if isinstance(v, bool)}
        if token[1]["content"] not in present:
            library.add_tokens([AddedToken(token[1]["content"], **fields)])
    special = [text for text in roles if not (text in present and present[text].special)]
    known = [text for text in special if library.token_to_id(text) is not None]
    library.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in known])
