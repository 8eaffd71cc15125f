"""/v1/chat/completions, with the official client."""

import json
from typing import Any

import pytest
from jsonschema import validate
from openai import BadRequestError, OpenAI
from openai.types.chat import ChatCompletionChunk

ASK: list[Any] = [{"role": "user", "content": "Who wrote Hamlet?"}]


def joined(chunks: list[ChatCompletionChunk], index: int = 0) -> dict[str, Any]:
    """What the deltas of one choice add up to, by OpenAI's rules."""
    message: dict[str, Any] = {"content": "", "calls": {}, "logprobs": []}
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.index != index:
                continue
            delta = choice.delta
            message["content"] += delta.content or ""
            if delta.role:
                assert "role" not in message, "the role comes once"
                message["role"] = delta.role
            for call in delta.tool_calls or ():
                known = message["calls"].setdefault(call.index, {"arguments": ""})
                if call.id:
                    assert "id" not in known and call.function is not None
                    known |= {"id": call.id, "name": call.function.name, "type": call.type}
                assert call.function is not None
                known["arguments"] += call.function.arguments or ""
            if choice.logprobs:
                message["logprobs"] += choice.logprobs.content or []
            if choice.finish_reason:
                assert "reason" not in message
                message["reason"] = choice.finish_reason
    return message


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0},
        {"seed": 7},
        {"seed": 7, "n": 3, "logprobs": True, "top_logprobs": 3},
        {"seed": 1, "top_p": 0.9, "extra_body": {"top_k": 5, "min_p": 0.1, "repeat_penalty": 1.2}},
        {"seed": 1, "frequency_penalty": 1.5, "presence_penalty": -1.0, "stop": ["e", "zz"]},
        {"seed": 3, "response_format": {"type": "json_object"}},
    ],
    ids=str,
)
def test_streamed_is_unstreamed(client: OpenAI, given: dict[str, Any]) -> None:
    asked = {"model": "tiny", "messages": ASK, "max_tokens": 12, **given}
    whole = client.chat.completions.create(**asked)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options=options))
    assert len(whole.choices) == given.get("n", 1)
    for choice in whole.choices:
        streamed = joined(chunks, choice.index)
        assert streamed["role"] == "assistant"
        assert streamed["content"] == choice.message.content
        assert streamed["reason"] == choice.finish_reason
        if given.get("logprobs"):
            assert choice.logprobs is not None
            assert streamed["logprobs"] == choice.logprobs.content
    *body, last = chunks
    assert last.choices == [] and last.usage is not None and whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in body)
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].id.startswith("chatcmpl-")


def test_no_usage_unless_it_is_wanted(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(model="tiny", messages=ASK, max_tokens=3, stream=True)
    )
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"


def test_a_seed_repeats_and_choices_differ(client: OpenAI) -> None:
    def ask(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model="tiny", messages=ASK, max_tokens=8, seed=seed, n=3
        )
        return [choice.message.content for choice in answer.choices]

    assert ask(5) == ask(5) != ask(6)
    assert len(set(ask(5))) == 3


def test_usage_and_limits(client: OpenAI) -> None:
    for limit in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(
            model="tiny",
            messages=ASK,
            logit_bias={"0": -100},
            **{limit: 5},  # type: ignore[arg-type]
        )
        usage = answer.usage
        assert usage is not None and usage.completion_tokens <= 5
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        if answer.choices[0].finish_reason == "length":
            assert usage.completion_tokens == 5


def test_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=6, temperature=0, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content or []
    assert entries
    for entry in entries:
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)
        assert len(entry.top_logprobs) == 2 and entry.logprob <= 0
        assert bytes(entry.bytes or []).decode(errors="replace") == entry.token


def test_a_bias_decides(client: OpenAI, tokenizer: Any) -> None:
    (token,) = tokenizer.encode("e")
    answer = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=5, temperature=0, logit_bias={str(token): 100}
    )
    assert answer.choices[0].message.content == "eeeee"


SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer"}, "kind": {"enum": ["cat", "dog"]}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(3))
def test_a_schema_is_kept(client: OpenAI, seed: int) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=ASK,
        seed=seed,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    )
    if answer.choices[0].finish_reason == "stop":
        validate(json.loads(answer.choices[0].message.content or ""), SCHEMA)


def test_messages_of_every_kind(client: OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[Any] = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    for model in ("tiny", "tools"):
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=2)
        assert answer.choices[0].message.role == "assistant"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "pope", "content": ""}]}, "messages.0.role"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"stop": ["a"] * 10_000}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
                }
            },
            "response_format.json_schema.schema",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:,"}}],
                    }
                ]
            },
            "messages.0.content",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(client: OpenAI, change: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": ASK, **change})
    error = caught.value.body
    assert isinstance(error, dict)
    assert error["param"] == param and error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]


def test_a_schema_that_is_too_complex(client: OpenAI) -> None:
    for count, says in ((2100, "too complex"), (3000, "65536")):
        many = {f"p{i}": {"type": "string"} for i in range(count)}
        given: Any = {"name": "x", "schema": {"type": "object", "properties": many}}
        with pytest.raises(BadRequestError, match=says):
            client.chat.completions.create(
                model="tiny",
                messages=ASK,
                response_format={"type": "json_schema", "json_schema": given},
            )


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


def test_an_overflow_tells_the_counts(client: OpenAI) -> None:
    for messages, limit in (([{"role": "user", "content": "a b " * 50_000}], 1), (ASK, 100_000)):
        with pytest.raises(BadRequestError) as caught:
            client.chat.completions.create(model="tiny", messages=messages, max_tokens=limit)  # type: ignore[arg-type]
        assert caught.value.code == "context_length_exceeded"
        assert "2048" in str(caught.value)


def test_a_base_model_does_not_chat(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="/v1/completions"):
        client.chat.completions.create(model="base", messages=ASK)
    with pytest.raises(BadRequestError, match="/v1/embeddings"):
        client.chat.completions.create(model="letters", messages=ASK)


# Tools


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


@pytest.mark.parametrize("model", ["tiny", "tools"])
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
