"""Tokenizers that are trained, saved, and read from folders."""

import json
from pathlib import Path

import pytest

from trivium.errors import NotFound, UsageError
from trivium.language.tokenizer import Tokenizer

CORPUS: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("corpus.json").read_text("utf-8")
)
TEXTS = [text for texts in CORPUS.values() for text in texts]
TRAINED = Tokenizer.train(TEXTS, 600)


def test_training_learns_frequent_words_and_repeats_itself() -> None:
    texts = ["the cat sat on the mat"] * 20
    tokenizer = Tokenizer.train(texts, 300)
    assert tokenizer.encode(" the cat") == Tokenizer.train(iter(texts), 300).encode(" the cat")
    assert len(tokenizer.encode(" the")) == 1
    assert tokenizer.vocab_size <= 300


def test_training_on_nothing_knows_the_bytes() -> None:
    assert Tokenizer.train([], 259).encode("é") == Tokenizer.train([""], 300).encode("é")


def test_training_needs_room_for_the_bytes() -> None:
    with pytest.raises(UsageError, match="vocab_size 258 is too small.* at least 259"):
        Tokenizer.train(["x"], 258)
    with pytest.raises(UsageError, match="at least one special token"):
        Tokenizer.train(["x"], 400, special=())


def test_a_saved_tokenizer_comes_back(tmp_path: Path) -> None:
    tokenizer = TRAINED
    tokenizer.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert again.to_json() == tokenizer.to_json()
    assert (again.bos, again.eos, again.pad) == (tokenizer.bos, tokenizer.eos, tokenizer.pad)
    assert again.stop_ids == tokenizer.stop_ids
    assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_saving_keeps_what_else_generation_config_says(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.2}')
    TRAINED.save(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["temperature"] == 0.2


def test_a_folder_names_its_special_tokens_in_many_places(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(TRAINED.to_json())
    size = TRAINED.vocab_size
    added = {
        str(size): {"content": "<turn>", "special": True, "lstrip": False},
        str(size + 1): {"content": "<tool>", "special": False},
    }
    config = {"eos_token": {"content": "<turn>"}, "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<|im_start|>"}')
    (tmp_path / "config.json").write_text('{"pad_token_id": 0, "eos_token_id": 2}')
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": [0, {size}]}}')
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (1, size, 0)
    assert tokenizer.stop_ids == {0, 2, size}
    assert tokenizer.encode("<turn><tool>", special=True) == [size, size + 1]
    assert size in tokenizer.special_ids and size + 1 not in tokenizer.special_ids


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", b"{", "cannot read .*tokenizer.json"),
        ("tokenizer.json", b"\xff\xfe\x00", "tokenizer.json: not UTF-8"),
        ("tokenizer.json", b"", "cannot read .*tokenizer.json"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json: expected a JSON object"),
        ("generation_config.json", b"nope", "generation_config.json: not valid JSON"),
    ],
)
def test_a_broken_file_of_a_folder_is_named(
    tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(TRAINED.to_json())
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "模型 🙂").mkdir()
    with pytest.raises(NotFound, match="no tokenizer.json in .*模型 🙂"):
        Tokenizer.from_folder(tmp_path / "模型 🙂")
