"""Clients that leave, crowds, slow readers, failures on the way, and the end of the server.

All of it over a tiny model in a real batch, whose steps are slowed down where time matters.
"""

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from openai import APIError, InternalServerError
from tests.server.conftest import Paced, connected, running

from trivium.errors import TriviumError
from trivium.server.app import Settings
from trivium.server.served import Models

ASK: list[Any] = [{"role": "user", "content": "Hi"}]
CHAT = {"model": "tiny", "messages": ASK}


def until(condition: Callable[[], bool], seconds: float = 10.0) -> float:
    """How long it took until the condition held."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it never happened"
        time.sleep(0.01)
    return time.monotonic() - start


def gauge(url: str, name: str) -> int:
    text = httpx.get(f"{url}/metrics").text
    return int(text.partition(f"\ntrivium_{name} ")[2].split("\n")[0])


@contextmanager
def posted(url: str, path: str, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A request that was sent; its client hangs up at the end, in a rude way."""
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        yield raw


LONG_PROMPT = "a long story " * 150
CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT_PATH, {}),
        (CHAT_PATH, {"stream": True}),
        (CHAT_PATH, {"n": 3}),
        (TEXT_PATH, {"prompt": "Hi", "max_tokens": 1500}),
        (CHAT_PATH, {"messages": [{"role": "user", "content": LONG_PROMPT}]}),
        (CHAT_PATH, {"messages": [{"role": "user", "content": LONG_PROMPT}], "stream": True}),
        (TEXT_PATH, {"prompt": LONG_PROMPT, "n": 2}),
        (TEXT_PATH, {"prompt": LONG_PROMPT, "echo": True, "logprobs": 1, "n": 2}),
    ],
    ids=["whole", "stream", "n", "text", "prompt", "prompt-stream", "prompt-n", "echo"],
)
def test_the_work_stops_when_the_client_leaves(
    served: Callable[..., Models],
    paced: Callable[..., Paced],
    endless: dict[str, Any],
    path: str,
    body: dict[str, Any],
) -> None:
    """Whatever is being done: the prompt in chunks, the answer, the scores of a text."""
    engine = paced(step=0.02, chunk=0.1, size=4)
    body = {**CHAT, **endless, **body}
    with running(served(engine), Settings(max_concurrent=8)) as url:
        with posted(url, path, body) as raw:
            until(lambda: gauge(url, "requests_running") == body.get("n", 1))
            if "echo" not in body:
                until(lambda: engine.chunks + engine.steps > 2)
            if body.get("stream") and "story" not in str(body):
                assert raw.recv(100).startswith(b"HTTP/1.1 200")
        # At once; on a busy machine in a while, but long before the answer would have ended.
        assert until(lambda: gauge(url, "requests_running") == 0) < 4.0
        time.sleep(0.3)  # what was begun is finished, and nothing else begins
        done = engine.chunks + engine.steps
        time.sleep(0.3)
        assert engine.chunks + engine.steps == done
        assert httpx.post(url + CHAT_PATH, json=CHAT | {"max_tokens": 2}).status_code == 200


def test_who_leaves_while_it_is_led_to_tools(
    served: Callable[..., Models], paced: Callable[..., Paced]
) -> None:
    """Arguments are filled in by several generations, in a thread that waits for them."""
    described = {"name": "f", "parameters": {"properties": {"x": {"type": "string"}}}}
    tools = [{"type": "function", "function": described}]
    engine = paced(step=0.05)
    with running(served(engine)) as url:
        asked = CHAT | {"tools": tools, "tool_choice": "required"}
        with posted(url, CHAT_PATH, asked):
            until(lambda: engine.steps > 0)
        assert until(lambda: gauge(url, "requests_running") == 0) < 1.0
        time.sleep(0.3)
        done = engine.steps
        time.sleep(0.3)
        assert engine.steps == done


def test_who_leaves_the_line_is_never_served(
    served: Callable[..., Models], paced: Callable[..., Paced], endless: dict[str, Any]
) -> None:
    engine = paced(step=0.02)
    asked = CHAT | endless | {"max_tokens": 50}
    with running(served(engine), Settings(max_concurrent=1, queue=4)) as url:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(httpx.post, url + CHAT_PATH, json=asked, timeout=20)
            until(lambda: engine.steps > 0)
            read = engine.chunks
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url + CHAT_PATH, json=asked, timeout=0.2)
            until(lambda: gauge(url, "requests_waiting") == 0)
            assert first.result().status_code == 200
        time.sleep(0.1)
        assert engine.chunks == read


def test_a_full_line_turns_away(
    served: Callable[..., Models], paced: Callable[..., Paced], endless: dict[str, Any]
) -> None:
    asked = CHAT | endless | {"max_tokens": 30}
    with (
        running(served(paced(step=0.03)), Settings(max_concurrent=1, queue=1)) as url,
        ThreadPoolExecutor(2) as pool,
    ):
        taken = [pool.submit(httpx.post, url + CHAT_PATH, json=asked, timeout=20)]
        until(lambda: gauge(url, "requests_running") == 1)
        taken.append(pool.submit(httpx.post, url + CHAT_PATH, json=asked, timeout=20))
        until(lambda: gauge(url, "requests_waiting") == 1)
        for streamed in (True, False):
            answer = httpx.post(url + CHAT_PATH, json=asked | {"stream": streamed})
            assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert [one.result().status_code for one in taken] == [200, 200]


def test_two_hundred_at_once(served: Callable[..., Models], paced: Callable[..., Paced]) -> None:
    """Each is answered, and as it would be alone, or sent away with when to come again."""
    engine = paced(step=0.002)
    with (
        running(served(engine), Settings(max_concurrent=4, queue=20)) as url,
        httpx.Client(limits=httpx.Limits(max_connections=200), timeout=60) as http,
    ):
        asked = CHAT | {"max_tokens": 6, "seed": 5}
        alone = http.post(url + CHAT_PATH, json=asked).json()["choices"][0]["message"]["content"]
        gate = threading.Barrier(200)

        def ask(i: int) -> httpx.Response:
            gate.wait()
            return http.post(url + CHAT_PATH, json=asked | {"stream": i % 2 == 0})

        with ThreadPoolExecutor(200) as pool:
            answers = list(pool.map(ask, range(200)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) <= {200, 429, 503} and statuses.count(200) >= 24
        for answer in answers:
            if answer.status_code != 200:
                assert answer.headers["retry-after"].isdecimal()
                assert answer.json()["error"]["code"] in ("rate_limit_exceeded", "overloaded")
            elif answer.headers["content-type"] == "application/json":
                assert answer.json()["choices"][0]["message"]["content"] == alone
            else:
                assert said(answer.text) == alone and answer.text.endswith("data: [DONE]\n\n")
        assert engine.most_at_once <= 4
        assert http.post(url + CHAT_PATH, json=asked).status_code == 200


def said(stream: str) -> str:
    """The text of a stream of deltas."""
    lines = (line.removeprefix("data: ") for line in stream.split("\n\n"))
    chunks = (json.loads(line) for line in lines if line.startswith("{"))
    deltas = (choice["delta"] for chunk in chunks for choice in chunk["choices"])
    return "".join(delta.get("content") or "" for delta in deltas)


def test_hanging_up_at_any_moment(
    served: Callable[..., Models], paced: Callable[..., Paced]
) -> None:
    moments = random.Random(7)
    engine = paced(step=0.002, chunk=0.005, size=16)
    with running(served(engine), Settings(max_concurrent=6, queue=200)) as url:
        asked = CHAT | {"seed": 3, "max_tokens": 12}
        alone = httpx.post(url + CHAT_PATH, json=asked).json()["choices"]

        def leave(seconds: float) -> None:
            body = asked | {
                "stream": moments.random() < 0.5,
                "n": moments.randrange(1, 3),
                "messages": [{"role": "user", "content": "a story " * moments.randrange(1, 99)}],
            }
            with posted(url, CHAT_PATH, body):
                time.sleep(seconds)

        with ThreadPoolExecutor(20) as pool:
            list(pool.map(leave, [moments.random() ** 2 * 0.5 for _ in range(80)]))
        until(lambda: gauge(url, "requests_running") + gauge(url, "requests_waiting") == 0)
        assert httpx.post(url + CHAT_PATH, json=asked).json()["choices"] == alone


def test_a_slow_reader_holds_up_nobody(
    served: Callable[..., Models], endless: dict[str, Any]
) -> None:
    asked = CHAT | endless | {"max_tokens": 1200, "stream": True}
    asked |= {"logprobs": True, "top_logprobs": 20}  # so much that it fits into no buffer
    with running(served(), Settings(max_concurrent=1)) as url:
        with httpx.stream("POST", url + CHAT_PATH, json=asked, timeout=60) as one:
            pieces = one.iter_raw()
            begin = next(pieces)
            # It is made, though nobody reads it.
            until(lambda: gauge(url, "requests_running") == 0, 60)
            other = httpx.post(url + CHAT_PATH, json=CHAT | {"max_tokens": 3}, timeout=20)
            assert other.status_code == 200
            whole = (begin + b"".join(pieces)).decode()
        assert len(whole) > 3 << 19
        assert said(whole) == "e" * 1200 and whole.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("fail", "says"),
    [(TriviumError("the logits hold nan"), "the logits hold nan"), (KeyError("x"), "KeyError")],
)
def test_failures_on_the_way(
    served: Callable[..., Models],
    paced: Callable[..., Paced],
    endless: dict[str, Any],
    fail: Exception,
    says: str,
    streamed: bool,
) -> None:
    asked: Any = CHAT | {"stream": streamed, "logit_bias": endless["logit_bias"]}
    with running(served(paced(fail=fail))) as url, connected(url) as client:
        with pytest.raises(APIError, match=says) as caught:
            list(client.chat.completions.create(**asked))
        assert streamed or isinstance(caught.value, InternalServerError)
        assert httpx.get(f"{url}/health").status_code == 200
        if streamed:
            lines = httpx.post(url + CHAT_PATH, json=asked).text
            *_, error, done, end = lines.split("\n\n")
            assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"
            assert (done, end) == ("data: [DONE]", "")


def test_pings(
    served: Callable[..., Models],
    paced: Callable[..., Paced],
    endless: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trivium.server.streams.PING", 0.05)
    asked: Any = CHAT | endless | {"stream": True, "max_tokens": 2}
    engine = paced(chunk=0.3, step=0.3)
    with running(served(engine)) as url, connected(url) as client:
        text = httpx.post(url + CHAT_PATH, json=asked).text
        assert text.startswith(": ping\n\n") and text.count(": ping\n\n") >= 4
        chunks = list(client.chat.completions.create(**asked))
        assert [c.choices[0].delta.content for c in chunks] == ["", "e", "e", None]


def test_while_it_loads(served: Callable[..., Models]) -> None:
    models = served()
    with running(models, load=False) as url:
        for path in ("/health", CHAT_PATH):
            answer = httpx.post(url + path, json=CHAT) if "chat" in path else httpx.get(url + path)
            assert answer.status_code == 503 and answer.headers["retry-after"]
            assert answer.json()["error"]["code"] == "model_loading"
        assert [card["id"] for card in httpx.get(f"{url}/v1/models").json()["data"]]
        models.load()
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize("waits", [False, True], ids=["answered", "in-line"])
def test_the_end_cuts_what_still_runs(
    served: Callable[..., Models],
    paced: Callable[..., Paced],
    endless: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    waits: bool,
) -> None:
    monkeypatch.setattr("trivium.server.run.GRACE", 0.3)
    engine = paced(step=0.01)
    answers: list[str] = []

    def read(url: str) -> None:
        asked = CHAT | endless | {"stream": True}
        answers.append(httpx.post(url + CHAT_PATH, json=asked, timeout=20).text)

    with running(served(engine), Settings(max_concurrent=1)) as url:
        readers = [threading.Thread(target=read, args=(url,)) for _ in range(1 + waits)]
        for reader in readers:
            reader.start()
        until(lambda: engine.steps > 0 and gauge(url, "requests_waiting") == waits)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    for reader in readers:
        reader.join(5)
    for text in answers:
        last = text.removesuffix("\n\ndata: [DONE]\n\n").rpartition("data: ")[2]
        assert json.loads(last)["error"]["code"] == "shutting_down"
    assert len(answers) == 1 + waits


def test_the_end_waits_for_what_is_short(
    served: Callable[..., Models], paced: Callable[..., Paced], endless: dict[str, Any]
) -> None:
    engine = paced(step=0.02)
    answers: list[httpx.Response] = []
    asked = CHAT | endless | {"max_tokens": 20}
    with running(served(engine)) as url:
        reader = threading.Thread(
            target=lambda: answers.append(httpx.post(url + CHAT_PATH, json=asked))
        )
        reader.start()
        until(lambda: engine.steps > 0)
    reader.join(5)
    assert answers[0].json()["choices"][0]["message"]["content"] == "e" * 20
