"""Long texts are encoded in pieces, to the ids of the whole."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from tests.data.conftest import as_bytes, some_text
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, trainers

from trivium.data import encoding
from trivium.data.encoding import Encoder, cut
from trivium.language.gguf_tokenizer import PATTERNS
from trivium.language.tokenizer import Tokenizer

TEXTS = [some_text(seed, words) for seed, words in enumerate([3, 3000, 40, 0, 9000])]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "PIECE", 500)


def test_cuts_are_where_words_end() -> None:
    pieces = cut(TEXTS[1])
    assert len(pieces) > 10 and "".join(pieces) == TEXTS[1]
    for before, behind in pairwise(pieces):
        assert behind[0] == " " or before[-1] == "\n"
    assert cut("日" * 5000) == ["日" * 5000]


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_byte_level_pieces_give_the_ids_of_the_whole(pattern: str) -> None:
    tokenizer = Tokenizer.train(TEXTS, 500, pattern=pattern)
    encoder = Encoder(tokenizer.encode_many)
    assert [list(ids) for ids in encoder(TEXTS)] == [tokenizer.encode(text) for text in TEXTS]
    assert encoder._cuts


def marking_library() -> Library:
    """A tokenizer that puts a mark before every text and joins words, as Llama 2's."""
    library = Library(models.BPE(byte_fallback=True))
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Metaspace()
    library.train_from_iterator(TEXTS[:3], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    return library


def test_tokenizers_that_cannot_be_cut_get_whole_texts() -> None:
    library = marking_library()

    def encode_many(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in library.encode_batch(texts)]

    encoder = Encoder(encode_many)
    for _ in range(2):
        assert [list(ids) for ids in encoder(TEXTS)] == encode_many(TEXTS)
    assert not encoder._cuts


def test_one_by_one_or_together() -> None:
    encoder = Encoder(as_bytes)
    assert [list(ids) for ids in encoder(TEXTS)] == as_bytes(TEXTS)
    assert encoder([]) == [] and list(encoder([""])[0]) == []
