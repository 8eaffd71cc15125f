"""Tools in /v1/chat/completions, with the official client."""

import json
from typing import Any

import pytest
from jsonschema import validate
from openai import BadRequestError, OpenAI
from tests.server.conftest import ASK, joined
from tests.server.test_chat import SCHEMA

from trivium.server import chat


def function(name: str, parameters: dict[str, Any] | None = None) -> Any:
    described = {"name": name, "description": f"Does {name}."}
    if parameters is not None:
        described["parameters"] = parameters  # type: ignore[assignment]
    return {"type": "function", "function": described}


WEATHER = function(
    "weather",
    {
        "type": "object",
        "properties": {"day": {"enum": ["today", "tomorrow"]}, "hot": {"type": "boolean"}},
        "required": ["day", "hot"],
        "additionalProperties": False,
    },
)
NESTED = function(
    "nested",
    {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/point"}},
        "required": ["at"],
        "additionalProperties": False,
        "$defs": {
            "point": {
                "type": "object",
                "properties": {"x": {"enum": [1, 2]}, "y": {"type": "boolean"}},
                "required": ["x", "y"],
                "additionalProperties": False,
            }
        },
    },
)
BARE = function("bare")
NAMED = {"type": "function", "function": {"name": "nested"}}


@pytest.mark.parametrize("model", ["tiny", "tools", "both"])
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_choice_of_tool_is_kept(client: OpenAI, model: str, choice: Any) -> None:
    tools = [WEATHER, NESTED]
    schemas = {t["function"]["name"]: t["function"]["parameters"] for t in tools}
    for seed in range(3):
        asked: dict[str, Any] = {
            "model": model,
            "messages": ASK,
            "tools": tools,
            "tool_choice": choice,
            "parallel_tool_calls": False,
            "max_tokens": 400,
            "seed": seed,
        }
        answer = client.chat.completions.create(**asked).choices[0]
        assert answer.finish_reason == "tool_calls"
        (call,) = answer.message.tool_calls or ()
        assert call.type == "function" and answer.message.content is None
        if choice is NAMED:
            assert call.function.name == "nested"
        validate(json.loads(call.function.arguments), schemas[call.function.name])
        streamed = joined(list(client.chat.completions.create(**asked, stream=True)))
        assert streamed["reason"] == "tool_calls" and streamed["content"] == ""
        (same,) = streamed["calls"].values()
        assert (same["name"], same["arguments"]) == (call.function.name, call.function.arguments)
        assert same["id"].startswith("call_") and same["type"] == "function"


POEM = function(
    "poem",
    {
        "type": "object",
        "properties": {"lines": {"type": "array", "items": {"type": "string"}, "minItems": 2}},
        "required": ["lines"],
        "additionalProperties": False,
    },
)


@pytest.mark.parametrize(
    ("offered", "limit"), [(POEM, 400), (POEM, 60), (POEM, 25), (WEATHER, 400)]
)
def test_arguments_are_streamed_as_they_are_made(client: OpenAI, offered: Any, limit: int) -> None:
    """Also those of a call that the limit cuts, with the reason "length"."""
    several = 0
    for seed in range(6):
        asked: dict[str, Any] = {
            "model": "tools",
            "messages": ASK,
            "tools": [offered],
            "tool_choice": "required",
            "max_tokens": limit,
            "seed": seed,
        }
        whole = client.chat.completions.create(**asked).choices[0]
        chunks = list(client.chat.completions.create(**asked, stream=True))
        streamed = joined(chunks)
        assert streamed["reason"] == whole.finish_reason
        assert streamed["content"] == (whole.message.content or "")
        calls = whole.message.tool_calls or []
        several += len(calls) > 1
        for i, call in enumerate(calls):
            assert call.type == "function"
            known = streamed["calls"][i]
            assert known["name"] == call.function.name
            assert known["arguments"] == call.function.arguments
            parts = [
                part
                for chunk in chunks
                for choice in chunk.choices
                for part in choice.delta.tool_calls or ()
                if part.index == i
            ]
            assert len(call.function.arguments) < 12 or len(parts) > 3
            if i < len(calls) - 1 or whole.finish_reason == "tool_calls":
                json.loads(call.function.arguments)
        assert len(streamed["calls"]) == len(calls)
    assert several or offered is POEM


def test_one_call_if_no_more_are_wanted(client: OpenAI) -> None:
    for seed in range(4):
        answer = client.chat.completions.create(
            model="tools",
            messages=ASK,
            tools=[WEATHER],
            tool_choice="required",
            parallel_tool_calls=False,
            seed=seed,
        ).choices[0]
        assert len(answer.message.tool_calls or ()) == 1


@pytest.mark.parametrize("model", ["tiny", "tools"])
@pytest.mark.parametrize("given", [{}, {"tool_choice": "none"}, {"tool_choice": "auto"}], ids=str)
def test_tools_may_be_offered(client: OpenAI, model: str, given: dict[str, Any]) -> None:
    answer = client.chat.completions.create(
        model=model, messages=ASK, tools=[WEATHER, BARE], seed=1, max_tokens=30, **given
    )
    calls = answer.choices[0].message.tool_calls
    assert not (calls and given.get("tool_choice") == "none")
    assert bool(calls) == (answer.choices[0].finish_reason == "tool_calls")


def test_tools_and_a_form_of_the_answer(client: OpenAI) -> None:
    """With both, the reply is a call or JSON of that form."""
    for seed in range(4):
        answer = client.chat.completions.create(
            model="tools",
            messages=ASK,
            tools=[WEATHER],
            seed=seed,
            max_tokens=300,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        ).choices[0]
        if answer.finish_reason == "stop":
            validate(json.loads(answer.message.content or ""), SCHEMA)
        else:
            assert answer.finish_reason == "length" or answer.message.tool_calls


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([WEATHER], {"type": "function", "function": {"name": "no"}}, "tool_choice"),
        ([WEATHER, WEATHER], "auto", "tools"),
        ([function("f", {"type": "nonsense"})], "auto", "tools.0.function.parameters"),
        ([function("f", {"type": "array"})], "auto", "tools.0.function.parameters"),
        ([function("no spaces")], "auto", "tools.0.function.name"),
    ],
)
def test_wrong_tools_are_named(client: OpenAI, tools: Any, choice: Any, param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(
            model="tools", messages=ASK, tools=tools, tool_choice=choice, max_tokens=5
        )
    assert caught.value.param == param


@pytest.mark.parametrize("model", ["tiny", "tools"])
def test_a_hostile_pattern_is_never_run(client: OpenAI, model: str) -> None:
    """Python's regular expressions would take for ever to find that it does not match."""
    pattern = {"type": "string", "pattern": "^(a|a)*b$"}
    schema = {"type": "object", "properties": {"x": {"anyOf": [pattern, {"type": "string"}]}}}
    tools = [function("evil", schema), function("read_file", schema)]
    answer = client.chat.completions.create(
        model=model, messages=ASK, tools=tools, tool_choice="required", max_tokens=20, seed=1
    )
    assert answer.choices[0].finish_reason in ("tool_calls", "length")


RESULT = [
    {"role": "user", "content": "Is it hot?"},
    {
        "role": "assistant",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": "28 degrees"},
]


@pytest.mark.parametrize(
    ("messages", "choice", "begins", "of"),
    [
        (ASK, "auto", True, "tools"),  # the model with the adapter calls
        (ASK, "auto", False, "tiny"),  # what needs no tool is answered without it
        (ASK, "none", True, "tiny"),
        (ASK, "required", False, "tools"),
        (RESULT, "auto", False, "tools"),  # it says what its tool gave
    ],
)
def test_whose_reply_it_is_where_another_model_calls(
    messages: Any,
    choice: str,
    begins: bool,
    of: str,
    client: OpenAI,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`both` answers as `tiny` and calls as `tools`, whose weights are the same."""
    routed = chat._routed

    def decided(caller: Any, prompt: Any, call: Any, answer: Any, place: Any) -> None:
        # Random weights never call: which way the sign points is told here.
        routed(caller, prompt, call if begins else answer, call if begins else answer, place)

    monkeypatch.setattr(chat, "_routed", decided)
    asked: dict[str, Any] = {
        "messages": messages,
        "tools": [WEATHER],
        "tool_choice": choice,
        "max_tokens": 60,
        "seed": 3,
        "n": 2,
    }
    found = client.chat.completions.create(model="both", **asked)
    if of == "tiny":
        del asked["tools"], asked["tool_choice"]
    wanted = client.chat.completions.create(model=of, **asked)
    assert found.model == "both"
    for ours, theirs in zip(found.choices, wanted.choices, strict=True):
        assert said(ours) == said(theirs)
    parts = list(client.chat.completions.create(model="both", stream=True, **asked))
    assert joined(parts)["content"] == (found.choices[0].message.content or "")


def said(choice: Any) -> tuple[str, str | None, list[tuple[str, str]]]:
    calls = choice.message.tool_calls or []
    called = [(call.function.name, call.function.arguments) for call in calls]
    return choice.finish_reason, choice.message.content, called
