"""The parser and the assembly, without a server: see test_remote.py for whole answers."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivium.errors import TriviumError
from trivium.llmos.messages import Finish
from trivium.llmos.openai_stream import Completion, server_sent_events

STREAM = (
    "\ufeffdata: first\r\n\r\n: a comment\r\n"
    'data: {"a":\r\ndata: 1}\r\n\r\n'
    "event: error\ndata:no space\nid: 7\nretry: 10\n\n"
    "data: 你好 👋\r\r"
    "\n\n\n"
    'error: {"code": 500}\n\n'
    "data\n\n"
    "data: [DONE]"
).encode()
EVENTS = [
    ("", "first"),
    ("", '{"a":\n1}'),
    ("error", "no space"),
    ("", "你好 👋"),
    ("error", '{"code": 500}'),
    ("", ""),
    ("", "[DONE]"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_events_do_not_depend_on_how_the_bytes_are_cut(cuts: list[int]) -> None:
    borders = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[a:b] for a, b in zip(borders, borders[1:], strict=False)]
    assert list(server_sent_events(chunks)) == EVENTS


def test_events_byte_by_byte() -> None:
    assert list(server_sent_events(bytes([byte]) for byte in STREAM)) == EVENTS


@given(st.lists(st.binary(max_size=40)))
def test_any_bytes_can_be_read(chunks: list[bytes]) -> None:
    assert list(server_sent_events(chunks)) == list(server_sent_events([b"".join(chunks)]))


def test_a_long_line_in_small_chunks_is_read_in_linear_time() -> None:
    start = time.monotonic()
    chunks = [b"data: "] + [b"x" * 100] * 100_000 + [b"\n\n"]
    assert len(next(server_sent_events(chunks))[1]) == 10_000_000
    assert time.monotonic() - start < 5


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(TriviumError, match="a line of over 16 MB"):
        list(server_sent_events(b"x" * (1 << 20) for _ in range(100)))


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "choices",
                        "delta",
                        "tool_calls",
                        "function",
                        "index",
                        "id",
                        "usage",
                        "content",
                    ]
                ),
                x,
            )
        ),
    )
)
def test_no_chunk_breaks_the_assembly(value: Any) -> None:
    completion = Completion()
    list(completion.chunk({"choices": value, "usage": value}))
    list(completion.chunk({"choices": [{"delta": value}]}))
    list(completion.chunk({"choices": [{"delta": {"tool_calls": [value], "content": value}}]}))
    assert isinstance(list(completion.end())[-1], Finish)
