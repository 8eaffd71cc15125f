"""Calls are told as they are written, whatever the pieces in which they come."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.language.generation import End, Token
from trivium.language.tokenizer import Tokenizer
from trivium.llmos.messages import Finish
from trivium.llmos.native_tools import HERMES, LLAMA, MISTRAL, Form
from trivium.server.call_reader import CallReader
from trivium.server.plan import Argued, Called, Piece, Said

TOKENIZER = Tokenizer.train(["a"], 300)
# Text that looks like the end of a call, or like another one, within the arguments.
NASTY = [
    "}",
    "{",
    '"',
    "\\",
    "</tool_call>",
    "<tool_call>",
    "]",
    ", ",
    "\n",
    "日本",
    "[TOOL_CALLS]",
]
TEXTS = st.lists(st.sampled_from([*NASTY, "a", " "]), max_size=6).map("".join)
VALUES = st.recursive(
    TEXTS | st.integers() | st.none(),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXTS, v, max_size=2),
)
ARGUMENTS = st.dictionaries(TEXTS, VALUES, max_size=3)
CALL = st.tuples(st.sampled_from(["f", "get.x-1"]), ARGUMENTS)
CALLS, CALLS_MADE = st.lists(CALL, max_size=3), st.lists(CALL, min_size=1, max_size=2)


def written(form: Form, said: str, calls: Sequence[tuple[str, Any]]) -> str:
    """What a model writes under the grammar of `form`."""
    bodies = [
        f'{{"name": {json.dumps(name)}, "{form.key}": {json.dumps(arguments)}}}'
        for name, arguments in calls
    ]
    if form is LLAMA:
        return bodies[0] if bodies else said
    if not bodies:
        return said
    if form.listed:
        return f"{said}{form.begin} [{', '.join(bodies)}]"
    return said + "\n".join(f"{form.begin}\n{body}\n{form.end}" for body in bodies)


def read(reader: CallReader, pieces: Sequence[str], reason: Any = "stop") -> Iterator[Piece]:
    for i, piece in enumerate(pieces):
        yield from reader(Token(i + 300, piece))
    yield from reader(End(reason, "", 1, len(pieces), 0))


def joined(pieces: Sequence[Piece]) -> tuple[str, list[list[str]], str]:
    """Text, calls as [name, arguments] and the reason of the end."""
    text, calls = "", list[list[str]]()
    for piece in pieces[:-1]:
        if isinstance(piece, Said):
            text += piece.text
        elif isinstance(piece, Called):
            calls.append([piece.name, ""])
        else:
            assert isinstance(piece, Argued) and piece.text
            calls[-1][1] += piece.text
    assert isinstance(pieces[-1], Finish)
    return text, calls, pieces[-1].reason


def split(text: str, cuts: Sequence[int]) -> list[str]:
    places = sorted({cut % (len(text) + 1) for cut in cuts})
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("form", [HERMES, MISTRAL, LLAMA], ids=["hermes", "mistral", "llama"])
@given(
    said=st.sampled_from(["", "Let me see.", "a < b", "x\n\ny", "<tool", "[TOOL"]),
    calls=CALLS,
    cuts=st.lists(st.integers(0, 500), max_size=40),
)
@settings(max_examples=50, deadline=None)
def test_pieces_add_up(form: Form, said: str, calls: list[Any], cuts: list[int]) -> None:
    if form is LLAMA:
        said, calls = ("" if calls else said), calls[:1]
    text = written(form, said, calls)
    found, told, reason = joined(list(read(CallReader(form, TOKENIZER), split(text, cuts))))
    assert found == said
    assert [(name, json.loads(arguments)) for name, arguments in told] == calls
    assert reason == ("tool_calls" if calls else "stop")


@given(calls=CALLS_MADE, cut=st.integers(0, 300), cuts=st.lists(st.integers(0, 500)))
@settings(max_examples=50, deadline=None)
def test_a_cut_call_is_given_as_far_as_it_came(calls: list[Any], cut: int, cuts: list[int]) -> None:
    text = written(HERMES, "Look: ", calls)
    part = text[: cut % len(text)]
    whole = joined(list(read(CallReader(HERMES, TOKENIZER), [part], "length")))
    assert joined(list(read(CallReader(HERMES, TOKENIZER), split(part, cuts), "length"))) == whole
    said, told, reason = whole
    assert reason == "length" and "Look:".startswith(said.strip()[:5]) and "{" not in said
    for (name, arguments), (expected, whole_arguments) in zip(told, calls, strict=False):
        assert name == expected and json.dumps(whole_arguments).startswith(arguments)


def test_arguments_are_told_character_by_character() -> None:
    text = written(HERMES, "Hm ", [("f", {"a": [1, {"b": "}"}]})])
    reader = CallReader(HERMES, TOKENIZER)
    told = [list(reader(Token(300, char))) for char in text]
    begun = next(i for i, pieces in enumerate(told) if isinstance((pieces or [None])[0], Called))
    arguments = json.dumps({"a": [1, {"b": "}"}]})
    after = told[begun + 1 : begun + 1 + len(arguments)]
    assert [[Argued(char)] for char in arguments] == after
    assert not any(told[begun + 1 + len(arguments) :])


def test_a_form_of_the_answer_may_name_the_sign() -> None:
    """With `at_once`, what follows other text is no call."""
    text = '{"x": "<tool_call>"}'
    pieces = list(read(CallReader(HERMES, TOKENIZER, at_once=True), list(text)))
    assert joined(pieces) == (text, [], "stop")
    call = written(HERMES, "", [("f", {})])
    pieces = list(read(CallReader(HERMES, TOKENIZER, at_once=True), list(call)))
    assert joined(pieces) == ("", [["f", "{}"]], "tool_calls")


def test_tokens_go_with_the_text_they_make() -> None:
    reader = CallReader(HERMES, TOKENIZER, logprobs=True)
    text = ["Hi", " <", "b", " ", "<tool_", "call>\n"]
    pieces = [piece for i, part in enumerate(text) for piece in reader(Token(i, part, -1.0))]
    assert [(p.text, [t.id for t in p.tokens]) for p in pieces if isinstance(p, Said)] == [
        ("Hi", [0]),
        (" <b", [1, 2]),
    ]
