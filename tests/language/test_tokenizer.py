import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trivium.errors import UsageError
from trivium.language.gguf_tokenizer import SPLITS
from trivium.language.tokenizer import StreamDecoder, Tokenizer

CORPUS: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("corpus.json").read_text("utf-8")
)
TEXTS = [text for texts in CORPUS.values() for text in texts]
NORMAL, UNKNOWN, CONTROL, DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def gguf_bpe(**changes: object) -> dict[str, object]:
    """A byte-level vocabulary with few merges, as a GGUF file states it."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = ["h e", "l l", "he ll", "hell o", "Ġ hello"]
    merged = [merge.replace(" ", "") for merge in merges]
    tokens = [*control, *alphabet, *merged, "<think>"]
    types = [CONTROL] * 3 + [NORMAL] * (len(tokens) - 4) + [DEFINED]
    fields = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": types,
        "merges": merges,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items()}


def gguf_pieces(**changes: object) -> dict[str, object]:
    """A SentencePiece vocabulary. Its merges could build the control token </s> out of text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
    words = ["▁", *"abcdehlorw</s>!", "he", "ll", "hell", "hello", "▁hello", "</", "</s", "s>"]
    words += ["▁w", "or", "ld"]
    fields = {
        "model": "llama",
        "tokens": [*pieces, *words, "<tool>"],
        "token_type": types + [NORMAL] * len(words) + [DEFINED],
        "scores": [0.0] * len(pieces) + [-float(i) for i in range(len(words))] + [0.0],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items()}


def gguf_wordpiece() -> dict[str, object]:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁hello", "▁world", "s", "▁[", "▁]"]
    tokens += ["▁mask", "▁!"]
    fields = {
        "model": "bert",
        "tokens": tokens,
        "token_type": [CONTROL] * 5 + [NORMAL] * (len(tokens) - 5),
        "unknown_token_id": 1,
        "cls_token_id": 2,
        "seperator_token_id": 3,
        "padding_token_id": 0,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items()}


def whole_words() -> Tokenizer:
    """Words in the vocabulary are taken whole, and one such word is a control token."""
    metadata = gguf_bpe(pre="llama-bpe")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list) and isinstance(types, list)
    tokens.append("STOP")
    types.append(CONTROL)
    return Tokenizer.from_gguf(metadata)


def unigram() -> Tokenizer:
    """T5's kind, where a control token is the best piece for its own text."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0)]
    pieces += [(char, -3.0) for char in "</s>abhelo"]
    library = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    library.decoder = tokenizers.decoders.Metaspace()
    library.add_special_tokens(["<unk>", "</s>"])
    library.add_tokens(["<extra>"])
    return Tokenizer(library, eos=1)


def merging() -> Tokenizer:
    """A published kind whose merges build its control tokens out of text."""
    merges = [("<", "/"), ("</", "s"), ("</s", ">"), ("h", "e")]
    pieces = ["<unk>", *"</s>helo▁", "</", "</s", "</s>", "he"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True)
    )
    library.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    library.decoder = tokenizers.decoders.Metaspace(prepend_scheme="never")
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(library, eos=vocabulary["</s>"])


MAKERS = {
    "trained": lambda: Tokenizer.train(TEXTS, 600),
    "bpe": lambda: Tokenizer.from_gguf(gguf_bpe()),
    "whole words": whole_words,
    "pieces": lambda: Tokenizer.from_gguf(gguf_pieces()),
    "pieces, no prefix": lambda: Tokenizer.from_gguf(gguf_pieces(add_space_prefix=False)),
    "wordpiece": lambda: Tokenizer.from_gguf(gguf_wordpiece()),
    "unigram": unigram,
    "merging": merging,
}
ALL = {name: make() for name, make in MAKERS.items()}
LOSSLESS = ["trained", "bpe", "whole words", "pieces", "pieces, no prefix"]
unicode_text = st.text(st.characters(exclude_categories=["Cs"]))


def texts_about(tokenizer: Tokenizer) -> st.SearchStrategy[str]:
    """Text full of control tokens, whole and in pieces."""
    marks = sorted(tokenizer.control_tokens)
    halves = [mark[:2] for mark in marks] + [mark[2:] for mark in marks]
    piece = st.one_of(st.sampled_from(marks + halves), unicode_text, st.sampled_from(" <>|s/\n"))
    return st.lists(piece, max_size=8).map("".join)


def readable(name: str, text: str) -> str:
    """What a tokenizer can tell: for SentencePiece, ▁ is a space."""
    return text.replace("▁", " ") if name.startswith("pieces") else text


# -- encoding and decoding ----------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_decoding_undoes_encoding(name: str, text: str) -> None:
    tokenizer = ALL[name]
    assert tokenizer.decode(tokenizer.encode(text)) == readable(name, text)


@pytest.mark.parametrize("name", LOSSLESS)
def test_decoding_undoes_encoding_of_any_unicode_text(name: str) -> None:
    tokenizer = ALL[name]

    @given(unicode_text)
    @example("\r\n")
    @example(" \u0000 ")
    @settings(max_examples=300, deadline=None)
    def check(text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text)) == readable(name, text)

    check()


@pytest.mark.parametrize("name", LOSSLESS)
def test_token_bytes_spell_the_text(name: str) -> None:
    tokenizer = ALL[name]
    for text in TEXTS:
        spelled = b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(text)).decode()
        prefix = " " if name == "pieces" and text else ""
        assert spelled == prefix + readable(name, text)


@pytest.mark.parametrize("name", MAKERS)
def test_text_never_becomes_a_control_token(name: str) -> None:
    tokenizer = ALL[name]
    unknown = {tokenizer.control_tokens.get("<unk>"), tokenizer.control_tokens.get("[UNK]")}
    control = set(tokenizer.control_tokens.values()) - unknown
    assert control

    @given(texts_about(tokenizer))
    @settings(max_examples=300, deadline=None)
    def check(text: str) -> None:
        assert not control & set(tokenizer.encode(text))

    check()
    for mark, id in tokenizer.control_tokens.items():
        assert tokenizer.encode(mark, special=True) == [id]
        assert not control & set(tokenizer.encode(mark))


@pytest.mark.parametrize("name", MAKERS)
def test_text_without_control_tokens_is_encoded_the_same_either_way(name: str) -> None:
    tokenizer = ALL[name]
    for text in TEXTS:
        if not any(mark in text for mark in tokenizer.control_tokens):
            assert tokenizer.encode(text) == tokenizer.encode(text, special=True)


@pytest.mark.parametrize("name", MAKERS)
def test_markup_with_disguised_parts(name: str) -> None:
    """The disguised parts stay text; the rest is read as if they had not been there."""
    tokenizer = ALL[name]
    marks = {t: i for t, i in tokenizer.control_tokens.items() if t not in ("<unk>", "[UNK]")}
    first, second = sorted(marks)[:2]
    disguise = {mark[0]: chr(0xE200 + i) for i, mark in enumerate(tokenizer.control_tokens)}
    hide = str.maketrans(disguise)

    @given(texts_about(tokenizer), texts_about(tokenizer))
    @settings(max_examples=200, deadline=None)
    def check(a: str, b: str) -> None:
        text = f"{first}{a.translate(hide)}{second}{b.translate(hide)}{first}"
        ids = tokenizer.encode_marked(text, disguise)
        control = [i for i in ids if i in marks.values()]
        assert control == [marks[first], marks[second], marks[first]]
        plain = f"{first}{a}{second}{b}{first}"
        if not any(mark in part for mark in tokenizer.control_tokens for part in (a, b)):
            assert ids == tokenizer.encode(plain, special=True)

    check()


def test_html_and_spaces_that_a_model_has_as_tokens_are_text_not_control() -> None:
    library = tokenizers.Tokenizer.from_str(ALL["bpe"].to_json())
    library.add_tokens(["<table>", "</h1>", "    ", "<tool_call>", "[INST]", "<|x|>", "ü"])
    tokenizer = Tokenizer(library)
    added = {"<tool_call>", "[INST]", "<|x|>"}
    assert added <= set(tokenizer.control_tokens)
    assert not {"<table>", "</h1>", "    ", "ü"} & set(tokenizer.control_tokens)
    ids = tokenizer.encode("<table>    <tool_call>ü")
    assert ids[:2] == [library.token_to_id("<table>"), library.token_to_id("    ")]
    assert ids[-1] == library.token_to_id("ü")
    assert tokenizer.decode(ids) == "<table>    <tool_call>ü"


@pytest.mark.parametrize("text", ["\ud800", "fine \udfff", "\ud83d\ude42"])
def test_half_a_surrogate_pair_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"half a surrogate pair \(U\+D"):
        ALL["trained"].encode(text)


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    tokenizer = ALL["bpe"]
    hello = tokenizer.encode("hello")
    assert tokenizer.decode([*hello, tokenizer.vocab_size, 10**6]) == "hello"


def test_special_tokens_are_left_out_unless_asked_for() -> None:
    tokenizer = ALL["bpe"]
    ids = tokenizer.encode("<|im_start|>hello<think><|im_end|>", special=True)
    assert tokenizer.decode(ids) == "hello<think>"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>hello<think><|im_end|>"


@pytest.mark.parametrize(
    ("name", "text", "begins", "ends"),
    [("pieces", "hello", [1], []), ("wordpiece", "hello", [2], [3]), ("bpe", "hello", [], [])],
)
def test_wrap_adds_what_a_text_of_its_own_has_around_it(
    name: str, text: str, begins: list[int], ends: list[int]
) -> None:
    tokenizer = ALL[name]
    assert tokenizer.encode(text, wrap=True) == begins + tokenizer.encode(text) + ends


def test_wordpiece_reads_the_spelling_of_gguf() -> None:
    tokenizer = ALL["wordpiece"]
    assert tokenizer.encode("Hello worlds") == [5, 6, 7]
    assert tokenizer.encode("[MASK]") == [8, 10, 9]
    assert tokenizer.encode("hello [MASK]!", special=True) == [5, 4, 11]
    assert tokenizer.decode([2, 5, 6, 7, 3]) == "hello worlds"


# -- special ids --------------------------------------------------------------------------------


def test_ids_of_a_gguf_file() -> None:
    tokenizer = Tokenizer.from_gguf(gguf_bpe(padding_token_id=0, eot_token_id=0))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (1, 2, 0)
    assert tokenizer.stop_ids == {0, 2}
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.vocab_size == len(gguf_bpe()["tokenizer.ggml.tokens"])  # type: ignore[arg-type]


def test_an_id_out_of_range_is_no_id() -> None:
    assert Tokenizer.from_gguf(gguf_bpe(bos_token_id=10**6)).bos is None


def test_harmony_goes_on_after_a_message() -> None:
    library = tokenizers.Tokenizer.from_str(ALL["bpe"].to_json())
    library.add_special_tokens(["<|end|>"])
    assert library.token_to_id("<|end|>") in Tokenizer(library).stop_ids
    library.add_special_tokens(["<|return|>"])
    assert library.token_to_id("<|end|>") not in Tokenizer(library).stop_ids


# -- broken files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "nonsense"}, "unknown GGUF pre-tokenizer 'nonsense'; known: bloom, .*smollm"),
        ({"model": "rwkv"}, "kind 'rwkv'; known kinds: gpt2, llama, bert"),
        ({"model": None}, "tokenizer.ggml.model is missing"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"merges": None}, "tokenizer.ggml.merges is missing"),
        ({"token_type": [1]}, "broken GGUF tokenizer: .* 1 types"),
        ({"merges": ["h zzz"]}, "broken GGUF tokenizer: .*zzz"),
        ({"tokens": 7}, "broken GGUF tokenizer"),
        ({"tokens": ["a", "a"], "token_type": [1, 1], "merges": []}, "1 different ones"),
    ],
)
def test_a_broken_gguf_tokenizer_is_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Tokenizer.from_gguf(gguf_bpe(**changes))
    assert "\n" not in str(caught.value)


def test_pieces_without_scores() -> None:
    with pytest.raises(UsageError, match=r"scores is missing"):
        Tokenizer.from_gguf(gguf_pieces(scores=None))
    with pytest.raises(UsageError, match="1 scores"):
        Tokenizer.from_gguf(gguf_pieces(scores=[0.0]))


@pytest.mark.parametrize("pre", sorted(SPLITS))
def test_every_known_cut_loses_nothing(pre: str) -> None:
    tokenizer = Tokenizer.from_gguf(gguf_bpe(pre=pre))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


# -- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("skip", [True, False])
def test_a_stream_joins_to_the_decoded_text(name: str, skip: bool) -> None:
    tokenizer = ALL[name]

    @given(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=40))
    @settings(max_examples=200, deadline=None)
    def any_ids(ids: list[int]) -> None:
        stream = StreamDecoder(tokenizer, skip_special=skip)
        pieces = [stream.push(i) for i in ids] + [stream.flush()]
        assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip)

    @given(unicode_text)
    @settings(max_examples=200, deadline=None)
    def any_text(text: str) -> None:
        stream, shown = StreamDecoder(tokenizer), ""
        for id in tokenizer.encode(text):
            shown += stream.push(id)
            assert readable(name, text).startswith(shown)  # never a broken character
        assert shown + stream.flush() == readable(name, text)

    any_ids()
    any_text()


def test_a_stream_that_stops_within_a_character_says_so_and_can_be_used_again() -> None:
    tokenizer = ALL["bpe"]
    ids = tokenizer.encode("🙂")
    stream = StreamDecoder(tokenizer)
    assert [stream.push(i) for i in ids[:-1]] == ["", "", ""]
    assert stream.flush() == "\ufffd"
    assert "".join(map(stream.push, ids)) == "🙂"
