import random
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trivium.errors import UsageError
from trivium.language.tokenizer import StopStrings


def first_stop(text: str, stops: list[str]) -> str | None:
    """The text before the stop string that ends first; the longest of those."""
    ends = [(text.index(s) + len(s), -len(s)) for s in stops if s in text]
    if not ends:
        return None
    end, length = min(ends)
    return text[: end + length]


letters = st.text("ab<", max_size=12)


@given(st.lists(st.text("ab<", min_size=1, max_size=4), max_size=5), st.lists(letters, max_size=6))
@example(["ab", "b"], ["a", "b"])
@example(["aab"], ["aa", "ab"])
@settings(max_examples=500, deadline=None)
def test_stop_strings_cut_at_the_first_wherever_the_pieces_end(
    stops: list[str], pieces: list[str]
) -> None:
    expected = first_stop("".join(pieces), stops)
    stream, shown, stopped, read = StopStrings(stops), "", False, ""
    for piece in pieces:
        emit, stopped = stream.push(piece)
        shown += emit
        if stopped:
            break
        read += piece
        held = read[len(shown) :]
        # Held back is exactly what may still become a stop string.
        assert not held or any(stop.startswith(held) for stop in stops)
        longer = [read[i:] for i in range(len(shown))]
        assert not any(stop.startswith(end) for stop in stops for end in longer)
    assert stopped == (expected is not None)
    if stopped:
        assert shown == expected and stream.push("more") == ("", True) and stream.flush() == ""
    else:
        assert shown + stream.flush() == "".join(pieces)


def test_ten_thousand_stop_strings_are_as_fast_as_one() -> None:
    words = random.Random(0)
    stops = ["a" * 20 + "".join(words.choices("abcdef", k=20)) for _ in range(10_000)]
    began = time.perf_counter()
    many = StopStrings(stops)
    text = "a" * 200_000
    emitted, stopped = many.push(text)
    assert not stopped and emitted + many.flush() == text
    assert time.perf_counter() - began < 10  # well under one second; naively it takes minutes


@pytest.mark.parametrize("stops", [[""], ["a", ""], [3]])
def test_an_empty_stop_string_is_refused(stops: list[str]) -> None:
    with pytest.raises(UsageError, match="must be text that is not empty"):
        StopStrings(stops)
