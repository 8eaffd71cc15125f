"""/v1/completions, /v1/embeddings and /v1/models, with the official client."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from openai import BadRequestError, NotFoundError, OpenAI

from trivium.language.engine import Engine
from trivium.language.tokenizer import Tokenizer

PROMPT = "What is the capital of France? It is"


@pytest.mark.parametrize(
    "given",
    [
        {"seed": 1},
        {"seed": 1, "echo": True, "logprobs": 2},
        {"seed": 2, "n": 2, "prompt": ["one", "two of"], "logprobs": 0},
        {"temperature": 0, "stop": " "},
        {"max_tokens": 0, "echo": True, "logprobs": 1},
    ],
    ids=str,
)
def test_streamed_is_unstreamed(client: OpenAI, given: dict[str, Any]) -> None:
    asked = {"model": "base", "prompt": PROMPT, "max_tokens": 8, **given}
    whole = client.completions.create(**asked)
    options = {"include_usage": True}
    chunks = list(client.completions.create(**asked, stream=True, stream_options=options))
    prompts = 2 if isinstance(asked["prompt"], list) else 1
    assert len(whole.choices) == prompts * given.get("n", 1)
    for choice in whole.choices:
        parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert [part.finish_reason for part in parts if part.finish_reason] == [
            choice.finish_reason
        ]
        if choice.logprobs is not None:
            for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                streamed = [x for p in parts if p.logprobs for x in getattr(p.logprobs, key)]
                expected = getattr(choice.logprobs, key)
                if key in ("tokens", "text_offset"):
                    assert streamed == expected
                else:  # the second time from the cache: equal but for the order of sums
                    for one, other in zip(streamed, expected, strict=True):
                        assert other is None or one == pytest.approx(other, rel=1e-5)
    assert whole.usage is not None and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_prompt_is_scored(
    client: OpenAI, tokenizer: Tokenizer, engine: Callable[[str | None], Engine]
) -> None:
    """echo and logprobs give the log-probabilities that the engine gives by another way."""
    ids = tokenizer.encode(PROMPT, wrap=True)
    (expected,) = engine(None).score(ids[:1], [ids[1:]])
    for prompt in (PROMPT, ids):
        choice = client.completions.create(
            model="base", prompt=prompt, max_tokens=0, echo=True, logprobs=1
        ).choices[0]
        assert choice.text == PROMPT and choice.logprobs is not None
        first, *rest = choice.logprobs.token_logprobs or []
        assert first is None
        torch.testing.assert_close(torch.tensor(rest), torch.tensor(expected))
        assert "".join(choice.logprobs.tokens or []) == PROMPT
        for token, at in zip(
            choice.logprobs.tokens or [], choice.logprobs.text_offset or [], strict=True
        ):
            assert PROMPT[at:].startswith(token)


def test_usage_counts_each_prompt_once(client: OpenAI, tokenizer: Tokenizer) -> None:
    answer = client.completions.create(model="base", prompt=["a b", "c"], n=3, max_tokens=2)
    assert answer.usage is not None
    prompts = [tokenizer.encode(text, wrap=True) for text in ("a b", "c")]
    assert answer.usage.prompt_tokens == sum(map(len, prompts))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 2}, "prompt"),
        ({"prompt": "a " * 100_000}, "prompt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(client: OpenAI, change: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.completions.create(**{"model": "base", "prompt": "Hi", **change})
    assert caught.value.param == param


# Embeddings


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_embeddings(client: OpenAI, encoding: Any) -> None:
    texts = ["banana", "eerie"] * 40
    given = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model="letters", input=texts, **given)
    assert [item.index for item in answer.data] == list(range(80))
    assert answer.usage.prompt_tokens > 0
    if encoding != "base64":  # else the client leaves it as text
        assert answer.data[0].embedding == pytest.approx([1, 0, 0, 0])
        assert answer.data[79].embedding == pytest.approx([0, 0.9486833, 0.3162278, 0])


def test_fewer_dimensions(client: OpenAI) -> None:
    answer = client.embeddings.create(model="letters", input="aeo", dimensions=2)
    assert answer.data[0].embedding == pytest.approx([0.5**0.5, 0.5**0.5])


@pytest.mark.parametrize(
    "change",
    [
        {"input": []},
        {"input": ""},
        {"input": ["a", ""]},
        {"input": [1, 2]},
        {"input": ["a"] * 3000},
        {"dimensions": 99},
        {"model": "tiny"},
    ],
    ids=lambda change: str(change)[:30],
)
def test_wrong_embeddings(client: OpenAI, change: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.embeddings.create(**{"model": "letters", "input": "a", **change})
    assert caught.value.param == next(iter(change))


# Models


def test_models(client: OpenAI) -> None:
    cards = client.models.list().data
    assert [card.id for card in cards] == ["tiny", "both", "tools", "base", "letters"]
    assert client.models.retrieve("base").owned_by == "trivium"
    assert client.models.retrieve("tiny").model_extra == {
        "context_length": 2048,
        "capabilities": ["chat", "completions"],
    }


def test_a_text_that_is_too_long_to_embed(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match=r"text 40 .* tokens and letters reads 100") as caught:
        client.embeddings.create(model="letters", input=["a"] * 40 + ["e " * 200])
    assert caught.value.code == "context_length_exceeded"


def test_an_unknown_model(client: OpenAI) -> None:
    for ask in (
        lambda: client.models.retrieve("org/gpt"),
        lambda: client.completions.create(model="gpt-\ud800", prompt="a"),
        lambda: client.embeddings.create(model="gpt", input="a"),
    ):
        with pytest.raises((NotFoundError, UnicodeEncodeError)) as caught:
            ask()
        if isinstance(caught.value, NotFoundError):
            assert caught.value.code == "model_not_found"
