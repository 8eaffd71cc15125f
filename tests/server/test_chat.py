"""/v1/chat/completions, with the official client."""

import json
from typing import Any

import pytest
from jsonschema import validate
from openai import BadRequestError, OpenAI
from tests.server.conftest import ASK, joined


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


def test_usage_of_choices(client: OpenAI) -> None:
    """The prompt counts once, and what of it was known is told."""
    text = "An unheard-of question, " * 20
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": text}],
        "n": 3,
        "seed": 1,
        "max_tokens": 6,
        "logprobs": True,
    }
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    for answer, known in ((first, False), (second, True)):
        usage = answer.usage
        assert usage is not None and usage.prompt_tokens_details is not None
        cached = usage.prompt_tokens_details.cached_tokens or 0
        assert cached < usage.prompt_tokens and (cached > usage.prompt_tokens - 9 or not known)
        assert usage.prompt_tokens == (first.usage and first.usage.prompt_tokens)
        made = sum(len(c.logprobs.content or ()) for c in answer.choices if c.logprobs)
        # The end token is made, and is no part of the content.
        ended = sum(choice.finish_reason == "stop" for choice in answer.choices)
        assert usage.completion_tokens in (made, made + ended)
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert first.system_fingerprint == second.system_fingerprint
    assert (first.system_fingerprint or "").startswith("fp_")


@pytest.mark.parametrize("kind", ["text", "json_object"])
def test_forms_of_the_answer(client: OpenAI, kind: Any) -> None:
    for seed in range(3):
        answer = client.chat.completions.create(
            model="tiny", messages=ASK, seed=seed, max_tokens=60, response_format={"type": kind}
        ).choices[0]
        if kind == "json_object" and answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.message.content or ""), dict)


def test_of_a_union_the_member_that_was_meant_is_told(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="at most 256 items"):
        client.chat.completions.create(model="tiny", messages=ASK, stop=["a"] * 10_000)


@pytest.mark.parametrize("stop", ["e", ["zz", "e"]], ids=str)
def test_stop_strings(client: OpenAI, tokenizer: Any, stop: Any) -> None:
    first, second = tokenizer.encode("x") + tokenizer.encode("e")
    answer = client.chat.completions.create(
        model="tiny",
        messages=ASK,
        seed=2,
        stop=stop,
        max_tokens=200,
        logit_bias={str(first): 100, str(second): 97},
    ).choices[0]
    assert answer.finish_reason == "stop"
    assert set(answer.message.content or "") <= {"x"}


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
        ({"stop": [str(i) * 30 for i in range(200)]}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"top_p": 1.1}, "top_p"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"seed": 1.5}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"extra_body": {"top_k": -2}}, "top_k"),
        ({"extra_body": {"min_p": 2}}, "min_p"),
        ({"extra_body": {"repeat_penalty": 0}}, "repeat_penalty"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
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
