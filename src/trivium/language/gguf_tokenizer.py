"""The tokenizer that a GGUF file describes, rebuilt as one of the `tokenizers` library.

A GGUF file carries no tokenizer.json: it has the vocabulary, the merges or scores, the kind of
every token, and one name (`tokenizer.ggml.pre`) for the way text is cut into words before merging.
What each name means is fixed by llama.cpp; `PATTERNS` and `SPLITS` below are that table.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from trivium.errors import UsageError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)
_CJK_THEN_WORDS = (
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACE}",
)

# How text is cut: each expression in turn isolates its matches within the pieces left so far.
PATTERNS: Mapping[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "digits": (r"\p{N}", _GPT2),
    "llama-3": (rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACE}",),
    "qwen2": (rf"{_SHORT}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACE}",),
    "qwen3.5": (
        rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
        rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACE}",
    ),
    "tekken": (rf"{'|'.join(_CASED)}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}",),
    "gpt-4o": (
        rf"{_CASED[0]}{_SHORT}?|{_CASED[1]}{_SHORT}?|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}",
    ),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
    "deepseek-3": (r"\p{N}{1,3}", *_CJK_THEN_WORDS),
    "bloom": (r" ?[^(\s|.,!?…。，、।۔،)]+",),
    "viking": (r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"),
    "seed-coder": (rf"{_SHORT}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACE}",),
}

# Names of `tokenizer.ggml.pre`.
SPLITS: Mapping[str, str] = {
    "default": "default",
    **dict.fromkeys(
        ["gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "trillion", "granite-docling"]
        + ["jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "roberta-bpe", "gigachat"],
        "gpt-2",
    ),
    **dict.fromkeys(
        ["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        "digits",
    ),
    **dict.fromkeys(
        ["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"]
        + ["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"],
        "llama-3",
    ),
    **dict.fromkeys(
        ["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "kormo", "grok-2"], "qwen2"
    ),
    "qwen35": "qwen3.5",
    "tekken": "tekken",
    **dict.fromkeys(["gpt-4o", "llama4", "kanana2", "minimax-m2"], "gpt-4o"),
    "falcon": "falcon",
    "deepseek-coder": "deepseek-coder",
    **dict.fromkeys(["deepseek-v3", "hunyuan-dense"], "deepseek-3"),
    **dict.fromkeys(["bloom", "poro-chat", "gpt3-finnish"], "bloom"),
    "viking": "viking",
    "seed-coder": "seed-coder",
}

# A word that is in the vocabulary is one token even where the merges would not build it; and a text
# of its own begins with the start token unless the file says otherwise.
WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0"}
WHOLE_WORDS |= {"lfm2", "tekken"}


def byte_level(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Cut text by `PATTERNS[pattern]`, then spell each byte as one printable character."""
    cuts = [pre_tokenizers.Split(Regex(cut), behavior="isolated") for cut in PATTERNS[pattern]]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*cuts, bytes_])


def build(metadata: Mapping[str, Any]) -> Tokenizer:
    """The library tokenizer of a GGUF file's metadata. Raises UsageError for an unknown kind."""
    kinds = {"gpt2": _byte_level_bpe, "llama": _sentencepiece, "bert": _wordpiece}
    kind = _required(metadata, "model")
    if kind not in kinds:
        raise UsageError(
            f"this GGUF file has a tokenizer of kind {kind!r}; known kinds: {', '.join(kinds)}"
        )
    try:
        tokens = [str(token) for token in _required(metadata, "tokens")]
        types = metadata.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
        if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
            raise ValueError(
                f"{len(tokens)} tokens, {len(set(tokens))} different ones, {len(types)} types"
            )
        return kinds[kind](metadata, tokens, types)
    except UsageError:
        raise
    except Exception as error:  # metadata may hold anything, and the library raises Exception
        raise UsageError(f"broken GGUF tokenizer: {error}") from error


def _required(metadata: Mapping[str, Any], key: str) -> Any:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        raise UsageError(f"this GGUF file has no tokenizer: tokenizer.ggml.{key} is missing")
    return value


def token_id(metadata: Mapping[str, Any], name: str) -> int | None:
    """The id stored as `tokenizer.ggml.<name>_token_id`; None where absent or out of range."""
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    count = len(_required(metadata, "tokens"))
    return int(value) if value is not None and 0 <= int(value) < count else None


def _byte_level_bpe(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]
) -> Tokenizer:
    pre = str(metadata.get("tokenizer.ggml.pre", "default"))
    if pre not in SPLITS:
        raise UsageError(f"unknown GGUF pre-tokenizer {pre!r}; known: {', '.join(sorted(SPLITS))}")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = []
    for merge in _required(metadata, "merges"):
        space = merge.find(" ", 1)
        merges.append((merge[:space], merge[space + 1 :]))
    model = models.BPE(vocabulary, merges, ignore_merges=pre in WHOLE_WORDS)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = byte_level(SPLITS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, tokens, types)
    _frame(tokenizer, metadata, tokens, starts=pre in WHOLE_WORDS)
    return tokenizer


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]
) -> Tokenizer:
    """SentencePiece BPE (Kudo & Richardson 2018): the best-scoring neighbours merge first."""
    scores = [float(score) for score in _required(metadata, "scores")]
    if len(scores) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens but {len(scores)} scores")
    # A token that a person defined is matched in the text as it is, before spaces become ▁.
    tokens = [
        token.replace("▁", " ") if kind == _USER_DEFINED else token
        for token, kind in zip(tokens, types, strict=True)
    ]
    unknown = token_id(metadata, "unknown")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    model = models.BPE(
        vocabulary,
        _merges(tokens, types, scores, vocabulary),
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=_BYTE in types,
    )
    tokenizer = Tokenizer(model)
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * prefix)
    _add_tokens(tokenizer, tokens, types)
    _frame(tokenizer, metadata, tokens, starts=True)
    return tokenizer


def _merges(
    tokens: Sequence[str],
    types: Sequence[int],
    scores: Sequence[float],
    vocabulary: Mapping[str, int],
) -> list[tuple[str, str]]:
    """The pairs that may merge, best first. Only ordinary text takes part, so that no text can be
    merged into a control token."""
    ordinary = {token for token, kind in zip(tokens, types, strict=True) if kind == _NORMAL}
    ranked = []
    for token in ordinary:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ordinary and right in ordinary:
                rank = (-scores[vocabulary[token]], vocabulary[left], vocabulary[right])
                ranked.append((rank, left, right))
    return [(left, right) for _, left, right in sorted(ranked)]


def _wordpiece(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]
) -> Tokenizer:
    """BERT's WordPiece. GGUF marks the start of a word with ▁; BERT marks the rest with ##."""

    def spelled(token: str, kind: int) -> str:
        if kind != _NORMAL or (token.startswith("[") and token.endswith("]")):
            return token
        return token[1:] if token.startswith("▁") else f"##{token}"

    names = [spelled(token, kind) for token, kind in zip(tokens, types, strict=True)]
    unknown = token_id(metadata, "unknown")
    unk_token = "[UNK]" if unknown is None else names[unknown]
    model = models.WordPiece({name: i for i, name in enumerate(names)}, unk_token=unk_token)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _add_tokens(tokenizer, names, types)
    start = token_id(metadata, "cls")
    start = token_id(metadata, "bos") if start is None else start
    end = token_id(metadata, "seperator")  # spelled so in the format
    end = token_id(metadata, "eos") if end is None else end
    if start is not None and end is not None:
        tokenizer.post_processor = processors.BertProcessing(
            (names[end], end), (names[start], start)
        )
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Tell the library which tokens are matched whole in marked-up text, and which are control."""
    kinds = list(zip(tokens, types, strict=True))
    control = [token for token, kind in kinds if kind in (_CONTROL, _UNKNOWN)]
    defined = [token for token, kind in kinds if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in defined])


def _frame(
    tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: Sequence[str], *, starts: bool
) -> None:
    """What the model expects around a text of its own: a start token, an end token, or neither."""
    bos, eos = token_id(metadata, "bos"), token_id(metadata, "eos")
    pieces, special = ["$A"], []
    if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", starts):
        pieces.insert(0, tokens[bos])
        special.append((tokens[bos], bos))
    if eos is not None and metadata.get("tokenizer.ggml.add_eos_token", False):
        pieces.append(tokens[eos])
        special.append((tokens[eos], eos))
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=pieces, special_tokens=list(dict(special).items())
        )
