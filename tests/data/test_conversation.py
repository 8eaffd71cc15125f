"""Conversations and preferences of all shapes."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from trivium.data import conversations, preferences
from trivium.errors import UsageError

Write = Callable[[str, str | bytes], str]
USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}

SHAPES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "messages": ({"messages": [SYSTEM, USER, REPLY]}, [SYSTEM, USER, REPLY]),
    "weight": ({"messages": [USER, {**REPLY, "weight": 0}]}, [USER, {**REPLY, "weight": 0}]),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, REPLY]},
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, REPLY],
    ),
    "calls": (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "1", "tool_call_id": "x"},
                REPLY,
            ]
        },
        [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "1", "tool_call_id": "x"},
            REPLY,
        ],
    ),
    "sharegpt": (
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Yes?"},
            ],
        },
        [SYSTEM, USER, REPLY],
    ),
    "sharegpt calls": (
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "function_call", "value": json.dumps(CALL["function"])},
                {"from": "observation", "value": "1"},
            ]
        },
        [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "1"},
        ],
    ),
    "sharegpt as messages": ({"conversations": [USER, REPLY]}, [USER, REPLY]),
    "alpaca": ({"instruction": "Hi", "input": "", "output": "Yes?"}, [USER, REPLY]),
    "alpaca input": (
        {"instruction": "Hi", "input": "there", "output": "Yes?"},
        [{"role": "user", "content": "Hi\n\nthere"}, REPLY],
    ),
    "alpaca history": (
        {"instruction": "Hi", "output": "Yes?", "history": [["Hi", "Yes?"]], "system": "Be brief."},
        [SYSTEM, USER, REPLY, USER, REPLY],
    ),
    "dolly": (
        {"instruction": "Hi", "context": "there", "response": "Yes?"},
        [{"role": "user", "content": "Hi\n\nthere"}, REPLY],
    ),
    "prompt": ({"prompt": "Hi", "completion": "Yes?"}, [USER, REPLY]),
    "prompt of messages": (
        {"prompt": [SYSTEM, USER], "completion": [REPLY]},
        [SYSTEM, USER, REPLY],
    ),
    "question": ({"question": "Hi", "answer": "Yes?"}, [USER, REPLY]),
    "marked text": ({"text": "\n\nHuman: Hi\n\nAssistant: Yes?"}, [USER, REPLY]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_conversations(shape: str) -> None:
    record, messages = SHAPES[shape]
    (found,) = conversations([record])
    assert found.messages == messages and found.tools is None


def test_shapes_may_be_mixed_in_a_file_of_any_kind(write: Write) -> None:
    records = [record for record, _ in SHAPES.values()]
    wanted = [messages for _, messages in SHAPES.values()]
    lines = write("folder/a.jsonl", "\n".join(map(json.dumps, records)))
    array = write("b.json", json.dumps(records))
    write("folder/README.md", "no record")
    for source in (lines, array, str(lines).removesuffix("/a.jsonl")):
        assert [found.messages for found in conversations(source)] == wanted


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]]])
def test_tools_are_kept(tools: Any) -> None:
    (found,) = conversations([{"messages": [USER, REPLY], "tools": tools}])
    assert found.tools == ([TOOL["function"]] if tools == [TOOL["function"]] else [TOOL])


def reply(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


TURNS = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Hi\n\nAssistant: "
PAIRS: dict[str, tuple[dict[str, Any], Any]] = {
    "texts": ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, ([USER], ["a", "b"], [0, 1])),
    "messages": (
        {"prompt": [USER], "chosen": reply("a"), "rejected": reply("b")},
        ([USER], ["a", "b"], [0, 1]),
    ),
    "one message": (
        {"prompt": [USER], "chosen": reply("a")[0], "rejected": reply("b")[0]},
        ([USER], ["a", "b"], [0, 1]),
    ),
    "whole conversations": (
        {"chosen": [SYSTEM, USER, *reply("a")], "rejected": [SYSTEM, USER, *reply("b")]},
        ([SYSTEM, USER], ["a", "b"], [0, 1]),
    ),
    "prompt and whole conversations": (
        {"prompt": "Hi", "chosen": [USER, *reply("a")], "rejected": [USER, *reply("b")]},
        ([USER], ["a", "b"], [0, 1]),
    ),
    "marked texts": (
        {"chosen": f"{TURNS}a", "rejected": f"{TURNS}b"},
        ([USER, REPLY, USER], ["a", "b"], [0, 1]),
    ),
    "ranking": (
        {"prompt": "Hi", "responses": ["a", "b", "c"], "ranking": [1, 0, 2]},
        ([USER], ["b", "a", "c"], [0, 1, 2]),
    ),
    "ranks": (
        {"prompt": "Hi", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]},
        ([USER], ["b", "a", "c"], [0, 1, 1]),
    ),
    "scores": (
        {"prompt": "Hi", "responses": ["a", "b", "c"], "scores": [0.1, 0.9, -1]},
        ([USER], ["b", "a", "c"], [0, 1, 2]),
    ),
}


@pytest.mark.parametrize("shape", PAIRS)
def test_shapes_of_preferences(shape: str) -> None:
    record, (prompt, texts, ranks) = PAIRS[shape]
    (found,) = preferences([record])
    assert found.prompt == prompt and found.ranks == ranks
    assert found.responses == [reply(text) for text in texts]
    with pytest.raises(UsageError, match="a preference, not a conversation"):
        list(conversations([record]))


BAD: list[tuple[Any, str]] = [
    ([1], "expected a JSON object, not a list"),
    ({}, "no conversation: it has no fields"),
    ({"msgs": []}, "no conversation: it has 'msgs'; expected 'messages'"),
    ({"messages": []}, "'messages' is empty"),
    ({"messages": "Hi"}, "'messages' must be a list, not a text"),
    ({"messages": [USER, "Hi"]}, "message 2 must be an object, not a text"),
    ({"messages": [USER, {"content": "Yes?"}]}, "message 2 has no role"),
    ({"messages": [{"role": "wizard", "content": ""}]}, "message 1 has an unknown role 'wizard'"),
    ({"messages": [{"role": 3, "content": ""}]}, "message 1 has an unknown role '3'"),
    ({"messages": [USER]}, "no turn of the assistant"),
    ({"messages": [USER, {"role": "assistant"}]}, "message 2 (assistant) has no content"),
    ({"messages": [USER, {**REPLY, "content": 7}]}, "must be a text, not a number"),
    ({"messages": [{**USER, "content": [{"type": "image_url"}]}]}, "a part that is no text"),
    ({"messages": [USER, {**REPLY, "weight": 2}]}, "'weight' must be 0 or 1"),
    ({"messages": [USER, {**REPLY, "tool_calls": [{}]}]}, "a tool call needs a function"),
    ({"messages": [USER, REPLY], "tools": "{"}, "'tools' is a text that is no JSON"),
    ({"messages": [USER, REPLY], "tools": [{}]}, "a tool must be an object with a 'name'"),
    ({"conversations": [{"from": "human"}]}, "message 1 (user) has no content"),
    ({"instruction": "Hi", "output": None}, "no conversation"),
    ({"instruction": "Hi", "output": 3}, "'output' must be a text, not a number"),
    ({"instruction": "Hi", "output": "a", "history": ["x"]}, "entry 1 must be a pair"),
    ({"prompt": "Hi", "completion": "a", "label": False}, "a single reply with a 'label'"),
]


@pytest.mark.parametrize(("record", "message"), BAD, ids=[message for _, message in BAD])
def test_broken_conversations(write: Write, record: Any, message: str) -> None:
    good = json.dumps({"messages": [USER, REPLY]}) + "\n"
    path = write("bad.jsonl", good * 6 + json.dumps(record) + "\n" + good)
    with pytest.raises(UsageError, match=r"bad\.jsonl, line 7: ") as caught:
        list(conversations(path))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    corpus = conversations(path, skip_broken=True)
    assert len(list(corpus)) == 7 and corpus.broken == 1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [USER, REPLY]}, "no preference"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b", "label": 1}, "'label' beside"),
        ({"prompt": "Hi", "chosen": [USER], "rejected": "b"}, "no turn of the assistant"),
        ({"prompt": "Hi", "responses": ["a"], "ranks": [0]}, "fewer than two"),
        ({"prompt": "Hi", "responses": ["a", "b"]}, "without 'ranking'"),
        ({"prompt": "Hi", "responses": ["a", "b"], "ranking": [1, 1]}, "each of the replies"),
        ({"prompt": "Hi", "responses": ["a", "b"], "scores": [1]}, "must hold 2 numbers"),
        ({"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 1]}, "ranked equal"),
    ],
)
def test_broken_preferences(record: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match="the records given, record 1: ") as caught:
        list(preferences([record]))
    assert message in str(caught.value)


def test_nothing_given(write: Write) -> None:
    with pytest.raises(UsageError, match="no record among them"):
        conversations([])
    with pytest.raises(UsageError, match=r"chat\.jsonl is empty"):
        conversations(write("chat.jsonl", ""))
