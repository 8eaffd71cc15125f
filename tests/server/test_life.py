"""Clients that leave, crowds, slow readers, failures on the way, and the end of the server."""

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from openai import APIError, InternalServerError
from tests.server.conftest import Script, connected, running

from trivium.errors import TriviumError
from trivium.server.app import Settings
from trivium.server.served import Models

ASK: list[Any] = [{"role": "user", "content": "Hi"}]
CHAT = {"model": "tiny", "messages": ASK}
LONG = ("word ",) * 10_000


def until(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    """How long it took until the condition held."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it never happened"
        time.sleep(0.01)
    return time.monotonic() - start


@pytest.mark.parametrize("streamed", [True, False])
def test_generation_stops_when_the_client_leaves(
    served: Callable[..., Models], streamed: bool
) -> None:
    script = Script(LONG, seconds=0.01)
    with running(served(tiny=script)) as url:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps(CHAT | {"stream": streamed, "n": 2}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
        head += f"application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(head.encode() + body)
            until(lambda: script.started == 2)
            if streamed:
                assert raw.recv(100).startswith(b"HTTP/1.1 200")
            time.sleep(0.1)
        assert until(lambda: len(script.closed) == 2) < 1.0
        assert httpx.get(f"{url}/health").status_code == 200


def test_who_leaves_the_line_is_never_served(served: Callable[..., Models]) -> None:
    script = Script(("a",) * 30, seconds=0.02)
    with running(served(tiny=script), Settings(max_concurrent=1, queue=4)) as url:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(httpx.post, f"{url}/v1/chat/completions", json=CHAT, timeout=20)
            until(lambda: script.started == 1)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=0.1)
            assert first.result().status_code == 200
        time.sleep(0.1)
        assert script.started == 1


def test_a_full_line_turns_away(served: Callable[..., Models]) -> None:
    script = Script(("a",) * 20, seconds=0.03)
    with (
        running(served(tiny=script), Settings(max_concurrent=1, queue=1)) as url,
        ThreadPoolExecutor(2) as pool,
    ):
        taken = [pool.submit(httpx.post, f"{url}/v1/chat/completions", json=CHAT, timeout=20)]
        until(lambda: script.started == 1)
        taken.append(pool.submit(httpx.post, f"{url}/v1/chat/completions", json=CHAT, timeout=20))
        until(lambda: "trivium_requests_waiting 1" in httpx.get(f"{url}/metrics").text)
        for streamed in (True, False):
            answer = httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"stream": streamed})
            assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert [one.result().status_code for one in taken] == [200, 200]


def test_a_crowd_is_answered_or_sent_away(served: Callable[..., Models]) -> None:
    script = Script(seconds=0.002)
    settings = Settings(max_concurrent=4, queue=20)
    with (
        running(served(tiny=script), settings) as url,
        httpx.Client(limits=httpx.Limits(max_connections=200), timeout=30) as http,
    ):
        gate = threading.Barrier(200)

        def ask(i: int) -> httpx.Response:
            gate.wait()
            return http.post(f"{url}/v1/chat/completions", json=CHAT | {"stream": i % 2 == 0})

        with ThreadPoolExecutor(200) as pool:
            answers = list(pool.map(ask, range(200)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) <= {200, 429, 503} and statuses.count(200) >= 24
        for answer in answers:
            if answer.status_code == 200:
                assert "three" in answer.text
            else:
                assert answer.headers["retry-after"].isdecimal()
                assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert script.most_at_once <= 4
        assert http.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 200


def test_a_real_crowd(served: Callable[..., Models]) -> None:
    """As above, with a model, and each client's answer its own."""
    with running(served(), Settings(max_concurrent=4, queue=100)) as url, connected(url) as client:

        def ask(seed: int) -> str | None:
            answer = client.chat.completions.create(
                model="tiny", messages=ASK, seed=seed, max_tokens=4
            )
            return answer.choices[0].message.content

        alone = [ask(seed) for seed in range(4)]
        with ThreadPoolExecutor(24) as pool:
            assert list(pool.map(ask, [0, 1, 2, 3] * 6)) == alone * 6


def test_a_slow_reader_holds_up_nobody(served: Callable[..., Models]) -> None:
    script = Script(("x" * 1000,) * 2000)
    with running(served(tiny=script), Settings(max_concurrent=1)) as url:
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=CHAT | {"stream": True}
        ) as one:
            pieces = one.iter_raw()
            begin = next(pieces)
            until(lambda: len(script.closed) == 1)  # it was made, though nobody has read it
            assert httpx.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 200
            whole = begin + b"".join(pieces)
        assert whole.count(b"x" * 1000) == 2000 and whole.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("fail", "says"),
    [(TriviumError("the logits hold nan"), "the logits hold nan"), (KeyError("x"), "KeyError")],
)
def test_failures_on_the_way(
    served: Callable[..., Models], fail: Exception, says: str, streamed: bool
) -> None:
    with running(served(tiny=Script(fail=fail))) as url, connected(url) as client:
        with pytest.raises(APIError, match=says) as caught:
            answer = client.chat.completions.create(**CHAT, stream=streamed)  # type: ignore[call-overload]
            list(answer)
        assert streamed or isinstance(caught.value, InternalServerError)
        assert httpx.get(f"{url}/health").status_code == 200
        if streamed:
            lines = httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"stream": True}).text
            *_, error, done, end = lines.split("\n\n")
            assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"
            assert (done, end) == ("data: [DONE]", "")


def test_pings(served: Callable[..., Models], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivium.server.streams.PING", 0.05)
    with running(served(tiny=Script(("a",), seconds=0.3))) as url, connected(url) as client:
        text = httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"stream": True}).text
        assert text.startswith(": ping\n\n") and text.count(": ping\n\n") >= 2
        chunks = list(client.chat.completions.create(**CHAT, stream=True))  # type: ignore[call-overload]
        assert [c.choices[0].delta.content for c in chunks] == ["", "a", None]


def test_while_it_loads(served: Callable[..., Models]) -> None:
    models = served()
    with running(models, load=False) as url:
        for path in ("/health", "/v1/chat/completions"):
            answer = httpx.post(url + path, json=CHAT) if "chat" in path else httpx.get(url + path)
            assert answer.status_code == 503 and answer.headers["retry-after"]
            assert answer.json()["error"]["code"] == "model_loading"
        assert [card["id"] for card in httpx.get(f"{url}/v1/models").json()["data"]]
        models.load()
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}


def test_the_end_cuts_what_still_runs(
    served: Callable[..., Models], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trivium.server.run.GRACE", 0.3)
    script = Script(LONG, seconds=0.01)
    lines: list[str] = []

    def read(url: str) -> None:
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=CHAT | {"stream": True}, timeout=20
        ) as stream:
            lines.extend(line for line in stream.iter_lines() if line)

    with running(served(tiny=script)) as url:
        reader = threading.Thread(target=read, args=(url,))
        reader.start()
        until(lambda: script.started == 1)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    reader.join(5)
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert lines[-1] == "data: [DONE]" and len(script.closed) == 1


def test_the_end_waits_for_what_is_short(served: Callable[..., Models]) -> None:
    script = Script(("a",) * 20, seconds=0.02)
    answers: list[httpx.Response] = []
    with running(served(tiny=script)) as url:
        reader = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/chat/completions", json=CHAT))
        )
        reader.start()
        until(lambda: script.started == 1)
    reader.join(5)
    assert answers[0].json()["choices"][0]["message"]["content"] == "a" * 20
