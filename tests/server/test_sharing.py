"""What one client asks holds up no other, and one thread computes for all."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from tests.server.conftest import Letters, Paced, running
from tests.server.test_life import CHAT, CHAT_PATH, TEXT_PATH, gauge, posted, until
from torch import Tensor

from trivium.language.transformer import Transformer
from trivium.server.served import Models


def test_a_hostile_schema_holds_up_nobody(
    served: Callable[..., Models], paced: Callable[..., Paced], endless: dict[str, Any]
) -> None:
    """Schemas are read by other threads than the one that computes, and are bounded in size."""
    many = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1800)}}
    hostile = [many, *({"type": "string", "pattern": p} for p in ("(.*a.{500}){3}", "^(a|a)*b$"))]
    times: list[float] = []

    def read(url: str) -> None:
        asked = CHAT | endless | {"stream": True, "max_tokens": 2000}
        with httpx.stream("POST", url + CHAT_PATH, json=asked, timeout=30) as stream:
            for _ in stream.iter_lines():
                times.append(time.monotonic())

    with running(served(paced(step=0.005))) as url:
        reader = threading.Thread(target=read, args=(url,))
        reader.start()
        until(lambda: len(times) > 5)
        start, seen = time.monotonic(), len(times)
        for schema in hostile:
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            asked = CHAT | {"response_format": form, "max_tokens": 5, "n": 2}
            assert httpx.post(url + CHAT_PATH, json=asked, timeout=60).status_code in (200, 400)
        seconds = time.monotonic() - start
        assert len(times) - seen > 5 * seconds, "others went on meanwhile"
        assert max(b - a for a, b in zip(times[seen:], times[seen + 1 :], strict=False)) < 1.5
    reader.join(10)


def test_one_thread_computes(
    served: Callable[..., Models], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers, scores of texts, the choice of tools and embeddings: all by the same thread."""
    threads = set[str]()

    def noted(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            threads.add(f"{name} by {threading.current_thread().name}")
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((Transformer, "features"), (Transformer, "streams"), (Letters, "embed")):
        noted(owner, name)
    described = {"name": "f", "parameters": {"properties": {"x": {"type": "string"}}}}
    tools = [{"type": "function", "function": described}]
    with running(served()) as url:
        for path, body in (
            (CHAT_PATH, {"max_tokens": 3}),
            (CHAT_PATH, {"tools": tools, "tool_choice": "required"}),
            (TEXT_PATH, {"prompt": "a b c", "echo": True, "logprobs": 1}),
            ("/v1/embeddings", {"model": "letters", "input": ["a", "b"]}),
        ):
            assert httpx.post(url + path, json=CHAT | body, timeout=30).status_code == 200
    names = ("features", "streams", "embed")
    assert threads == {f"{name} by trivium-compute" for name in names}


def test_an_embedding_that_nobody_waits_for(
    served: Callable[..., Models], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = Letters.embed

    def slow(self: Letters, texts: Sequence[str]) -> Tensor:
        time.sleep(0.05)
        made.append(len(texts))
        return real(self, texts)

    monkeypatch.setattr(Letters, "embed", slow)
    with running(served()) as url:
        asked = {"model": "letters", "input": ["e" * 60] * 1000}
        with posted(url, "/v1/embeddings", asked):
            until(lambda: len(made) > 1)
        assert until(lambda: gauge(url, "requests_running") == 0) < 1.0
        time.sleep(0.2)
        assert sum(made) < 500
