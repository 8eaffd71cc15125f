import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trivium.errors import UsageError
from trivium.language.bag_of_words import bag_of_words, build_vocabulary, one_hot, words_of

TEXTS = ["The cat sat.", "the dog — the CAT!", "Straße, 北京 x_1"]


def test_words_have_no_case_and_any_script() -> None:
    assert words_of(TEXTS[2]) == ["strasse", "北京", "x_1"]
    assert words_of("…  \n") == []


def test_the_vocabulary_begins_with_the_most_frequent() -> None:
    vocabulary = build_vocabulary(TEXTS)
    assert list(vocabulary)[:3] == ["the", "cat", "dog"]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert list(build_vocabulary(TEXTS, min_count=2)) == ["the", "cat"]


def test_one_hot() -> None:
    vectors = one_hot(["b", "a", "b"], {"a": 0, "b": 1, "c": 2})
    assert vectors.tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert one_hot([], {"a": 0}).shape == (0, 1)
    with pytest.raises(UsageError, match="vocabulary of 1 words has no '猫'"):
        one_hot(["猫"], {"a": 0})


@given(st.lists(st.lists(st.sampled_from("abcde"), max_size=9), max_size=5))
def test_a_bag_is_the_sum_of_its_words_one_hot(texts: list[list[str]]) -> None:
    vocabulary = {"a": 0, "b": 1, "c": 2}
    bags = bag_of_words([" ".join(words) for words in texts], vocabulary)
    assert bags.shape == (len(texts), 3)
    for bag, words in zip(bags, texts, strict=True):
        known = [word for word in words if word in vocabulary]
        assert torch.equal(bag, one_hot(known, vocabulary).sum(0))
