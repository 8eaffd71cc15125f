"""RemoteModel against a server on this machine that plays what real and hostile servers send."""

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from trivium.errors import NotFound, TriviumError, UsageError
from trivium.llmos.endpoint import Endpoint
from trivium.llmos.messages import Finish, Message, ModelEvent, TextDelta, ToolCall, Usage
from trivium.llmos.remote import RemoteModel
from trivium.llmos.tools import Tool

KEY = "sk-very-secret"
NOW = 1_000_000_000.0
HELLO = [Message("user", "hello")]
WEATHER = Tool(
    "weather",
    "Tell the weather.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    lambda city: "rain",
)


@dataclass
class Reply:
    """`pieces` are sent one by one; "hang" keeps the connection open after them."""

    pieces: list[bytes] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "text/event-stream"
    hang: bool = False


class Server(ThreadingHTTPServer):
    """Plays `replies` in order and keeps the requests; `models` answers GET /v1/models."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: list[Reply] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models: list[str] | None = ["apple", "pear"]
        self.hung_up = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def plays(self, *replies: Reply) -> None:
        self.replies = list(replies)


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        if self.server.models is None:
            return self._send(Reply([b"no such page"], 404, content_type="text/plain"))
        data = [{"id": name, "object": "model"} for name in self.server.models]
        self._send(plain({"object": "list", "data": data}))

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(json.loads(body))
        self.server.headers.append({name.lower(): text for name, text in self.headers.items()})
        self._send(self.server.replies.pop(0))

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for piece in reply.pieces:
                self.wfile.write(piece)
                self.wfile.flush()
            while reply.hang:
                self.wfile.write(b": ping\n")
                time.sleep(0.01)
        except OSError:
            self.server.hung_up.set()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def model(server: Server) -> RemoteModel:
    return RemoteModel("apple", base_url=server.url, api_key=KEY, timeout=5)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which are not waited for."""
    waits: list[float] = []
    clock = SimpleNamespace(sleep=waits.append, time=lambda: NOW)
    monkeypatch.setattr("trivium.llmos.endpoint.time", clock)
    return waits


def plain(value: Any, status: int = 200, **headers: str) -> Reply:
    return Reply([json.dumps(value).encode()], status, headers, "application/json")


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def delta(reason: str | None = None, **values: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": values, "finish_reason": reason}
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "apple",
        "choices": [choice],
    }


def call_delta(index: int | None = 0, id: str | None = None, **function: Any) -> dict[str, Any]:
    call: dict[str, Any] = {"function": function}
    call |= {} if index is None else {"index": index}
    call |= {} if id is None else {"id": id, "type": "function"}
    return delta(tool_calls=[call])


USAGE = {
    **delta(),
    "choices": [],
    "usage": {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 4},
    },
}
DONE = b"data: [DONE]\n\n"


def text_of(events: list[ModelEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def calls_of(events: list[ModelEvent]) -> list[ToolCall]:
    return [event for event in events if isinstance(event, ToolCall)]


def play(server: Server, model: RemoteModel, *pieces: bytes) -> list[ModelEvent]:
    server.plays(Reply(list(pieces)))
    return list(model.stream(HELLO, [WEATHER]))


# The request


def conversation() -> list[Message]:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    return [
        Message("system", "Be brief."),
        Message("user", ({"type": "text", "text": "Where is this? 你好 👋"}, picture)),
        Message("assistant", "", (ToolCall("call_1", "weather", '{"city": "Köln"}'),)),
        Message("tool", "rain", tool_call_id="call_1", name="weather"),
        Message("user", "and now?"),
    ]


def test_the_request_is_the_one_that_the_official_client_sends(server: Server) -> None:
    server.plays(*[Reply([event(delta("stop", content="ok")), DONE])] * 2)
    ours = RemoteModel(
        "apple", base_url=server.url, api_key=KEY, temperature=0.5, max_tokens=7, seed=3
    )
    list(ours.stream(conversation(), [WEATHER]))
    with openai.OpenAI(base_url=server.url, api_key=KEY) as client:
        messages: Any = [message.to_json() for message in conversation()]
        tools: Any = [WEATHER.to_json()]
        stream = client.chat.completions.create(
            model="apple",
            messages=messages,
            tools=tools,
            stream=True,
            stream_options={"include_usage": True},
            temperature=0.5,
            max_tokens=7,
            seed=3,
        )
        with stream:
            list(stream)
    assert server.requests[0] == server.requests[1]
    for name in ("authorization", "content-type"):
        assert server.headers[0][name] == server.headers[1][name]


def test_no_key_means_no_authorization_header(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.plays(Reply([event(delta("stop", content="ok"))]))
    list(RemoteModel("apple", base_url=server.url).stream(HELLO))
    assert "authorization" not in server.headers[0]


def test_the_environment_names_endpoint_and_key(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    server.plays(Reply([event(delta("stop", content="ok"))]))
    assert text_of(list(RemoteModel("apple").stream(HELLO))) == "ok"
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_a_proxy_is_not_used_for_this_machine(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    server.plays(Reply([event(delta("stop", content="ok"))]))
    model = RemoteModel("apple", base_url=server.url, api_key=KEY)
    assert text_of(list(model.stream(HELLO))) == "ok"


def test_malformed_arguments_of_a_past_call_are_sent_as_json(model: RemoteModel) -> None:
    past = Message("assistant", "", (ToolCall("c", "weather", '{"city": '),))
    sent = model.request([past])["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(sent) == {"malformed": '{"city": '}


# The answer


def test_text_streams_as_it_arrives(server: Server, model: RemoteModel) -> None:
    server.plays(
        Reply([event(delta(role="assistant", content="")), event(delta(content="a"))], hang=True)
    )
    stream = model.stream(HELLO)
    assert next(stream) == TextDelta("a")  # while the server has not ended its answer
    stream.close()  # type: ignore[attr-defined]
    assert server.hung_up.wait(5), "closing the stream closes the connection"


def test_an_answer_with_everything(server: Server, model: RemoteModel) -> None:
    events = play(
        server,
        model,
        b": ping\n\n",
        event({**delta(), "choices": [], "prompt_filter_results": []}),
        event(delta(role="assistant", content=None)),
        event(delta(reasoning_content="hm, ")),
        event(delta(content="It ")),
        event(delta(content="rains")),
        event(
            {**delta(content=" elsewhere"), "choices": [{"index": 1, "delta": {"content": "x"}}]}
        ),
        event(delta("stop")),
        event(USAGE),
        DONE,
    )
    assert events == [TextDelta("It "), TextDelta("rains"), Finish("stop", Usage(9, 3, 4))]


CALL = ToolCall("call_1", "weather", '{"city": "Köln"}')
OTHER = ToolCall("call_2", "weather", '{"city": "Ulm"}')
FRAGMENTS: list[dict[str, Any]] = [
    call_delta(0, "call_1", name="weather", arguments=""),
    call_delta(0, arguments='{"city"'),
    call_delta(0, arguments=': "Köln"}'),
    call_delta(1, "call_2", name="weather", arguments='{"city": '),
    call_delta(1, arguments='"Ulm"}'),
]
OFFICIAL = [call_delta(0, "call_1", name="weather", arguments=CALL.arguments)]


@pytest.mark.parametrize(
    ("chunks", "calls"),
    [
        (FRAGMENTS, [CALL, OTHER]),
        (OFFICIAL, [CALL]),
        ([delta(content="I look.", role="assistant"), *OFFICIAL], [CALL]),
        # no index; the id tells which
        (
            [
                call_delta(None, "call_1", name="weather", arguments='{"city": '),
                call_delta(None, "call_1", arguments='"Köln"}'),
                call_delta(None, "call_2", name="weather", arguments=OTHER.arguments),
            ],
            [CALL, OTHER],
        ),
        # neither index nor id in the fragments
        (
            [
                call_delta(None, "call_1", name="weather"),
                call_delta(None, arguments='{"city": '),
                call_delta(None, arguments='"Köln"}'),
            ],
            [CALL],
        ),
        # index 0 for all, the ids differ
        (
            [
                call_delta(0, "call_1", name="weather", arguments=CALL.arguments),
                call_delta(0, "call_2", name="weather", arguments=OTHER.arguments),
            ],
            [CALL, OTHER],
        ),
        # id and name repeated with each fragment
        (
            [
                call_delta(0, "call_1", name="weather", arguments='{"city": '),
                call_delta(0, "call_1", name="weather", arguments='"Köln"}'),
            ],
            [CALL],
        ),
        # a name in fragments
        (
            [
                call_delta(0, "call_1", name="wea"),
                call_delta(0, name="ther", arguments=CALL.arguments),
            ],
            [CALL],
        ),
        # arguments as an object
        ([call_delta(0, "call_1", name="weather", arguments={"city": "Köln"})], [CALL]),
        # no arguments
        ([call_delta(0, "call_3", name="clock")], [ToolCall("call_3", "clock", "{}")]),
        (
            [call_delta(0, "call_3", name="clock", arguments=None)],
            [ToolCall("call_3", "clock", "{}")],
        ),
        # nonsense beside it is passed over
        ([delta(tool_calls=None), delta(tool_calls=["x", 7]), *OFFICIAL], [CALL]),
    ],
)
@pytest.mark.parametrize("reason", ["tool_calls", "stop", "eos", None])
def test_tool_calls_are_assembled(
    server: Server,
    model: RemoteModel,
    chunks: list[dict[str, Any]],
    calls: list[ToolCall],
    reason: str | None,
) -> None:
    events = play(server, model, *map(event, chunks), event(delta(reason)), event(USAGE), DONE)
    assert calls_of(events) == calls
    assert events[-1] == Finish("tool_calls", Usage(9, 3, 4))


def test_calls_without_ids_or_with_the_same_id_get_their_own(
    server: Server, model: RemoteModel
) -> None:
    events = play(
        server,
        model,
        event(call_delta(0, name="weather", arguments="{}")),
        event(call_delta(1, "0", name="weather", arguments="{}")),
        event(call_delta(2, "0", name="weather", arguments="{}")),
        event(delta("tool_calls")),
    )
    ids = [call.id for call in calls_of(events)]
    assert len(set(ids)) == 3 and all(ids)


def test_a_call_that_the_limit_cut_is_not_made(server: Server, model: RemoteModel) -> None:
    cut = [*FRAGMENTS[:-1], delta("length")]
    events = play(server, model, *map(event, cut), event(USAGE), DONE)
    assert calls_of(events) == [CALL]
    assert events[-1] == Finish("length", Usage(9, 3, 4))


@pytest.mark.parametrize("chunks", [FRAGMENTS, OFFICIAL, [delta(content="a"), delta(content="é")]])
def test_the_official_client_reads_the_same_out_of_a_stream(
    server: Server, model: RemoteModel, chunks: list[dict[str, Any]]
) -> None:
    pieces = [*map(event, chunks), event(delta("tool_calls")), event(USAGE), DONE]
    ours = play(server, model, *pieces)
    server.plays(Reply(pieces))
    with (
        openai.OpenAI(base_url=server.url, api_key=KEY) as client,
        client.chat.completions.stream(
            model="apple", messages=[{"role": "user", "content": "hello"}]
        ) as stream,
    ):
        completion = stream.get_final_completion()
    theirs = completion.choices[0].message
    assert text_of(ours) == (theirs.content or "")
    assert [call.to_json()["function"] for call in calls_of(ours)] == [
        {"name": call.function.name, "arguments": call.function.arguments}
        for call in theirs.tool_calls or []
    ]
    assert completion.usage is not None
    assert ours[-1].usage.prompt_tokens == completion.usage.prompt_tokens  # type: ignore[union-attr]


def test_characters_in_two_halves_are_joined(server: Server, model: RemoteModel) -> None:
    pieces = [
        rb'data: {"choices":[{"delta":{"content":"\ud83d"}}]}' + b"\n\n",
        rb'data: {"choices":[{"delta":{"content":"\ude00 \ude00"}}]}' + b"\n\n",
        rb'data: {"choices":[{"delta":{"content":"!\ud83d"},"finish_reason":"stop"}]}' + b"\n\n",
    ]
    assert text_of(play(server, model, *pieces)) == "😀 \ufffd!\ufffd"


@pytest.mark.parametrize(
    "pieces",
    [
        [event(delta(content="ok")), event(delta("stop"))],  # no [DONE]
        [event(delta(content="ok")), DONE],  # no finish_reason
        [event(delta("stop", content="ok"))[:-2]],  # no blank line at the end
        [b'data: {"choices":[{"delta":{"content":[{"type":"text","text":"ok"}]}}]}\n\n', DONE],
        [b'data: {"choices":[{"message":{"content":"ok"},"finish_reason":"stop"}]}\n\n'],
        [event(delta(content="ok")), b"data: [DONE]\r\n\r\n"],
    ],
)
def test_a_stream_may_lack_its_formalities(
    server: Server, model: RemoteModel, pieces: list[bytes]
) -> None:
    assert play(server, model, *pieces) == [TextDelta("ok"), Finish("stop", Usage(0, 1))]


def test_a_plain_answer_of_a_server_that_does_not_stream(
    server: Server, model: RemoteModel
) -> None:
    calls = [CALL.to_json(), OTHER.to_json()]
    message = {"role": "assistant", "content": "I look.", "tool_calls": calls}
    body = {
        "choices": [{"message": message, "finish_reason": "tool_calls"}],
        "usage": USAGE["usage"],
    }
    server.plays(plain(body))
    assert list(model.stream(HELLO)) == [
        TextDelta("I look."),
        CALL,
        OTHER,
        Finish("tool_calls", Usage(9, 3, 4)),
    ]


# Failures


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([event(delta(content="It"))], "hung up before the answer was complete"),
        ([event(delta(content="It")), b"data: {"], "sent what is not an answer: {"),
        (
            [event(delta(content="It")), event({"error": {"message": "out of\nmemory"}})],
            "out of memory",
        ),
        ([event({"error": "boom"})], "boom"),
        ([b'event: error\ndata: {"message": "boom"}\n\n'], "boom"),
        ([b'error: {"code": 500, "message": "boom"}\n\n'], "boom"),
        ([b"data: null\n\n"], "sent what is not an answer: null"),
        ([], "hung up"),
    ],
)
def test_a_broken_stream(
    server: Server, model: RemoteModel, pieces: list[bytes], message: str
) -> None:
    with pytest.raises(TriviumError, match=message) as caught:
        play(server, model, *pieces)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 1, "nothing is asked again after the first byte"


def test_a_connection_that_breaks_in_the_middle(server: Server, model: RemoteModel) -> None:
    server.plays(Reply([event(delta(content="It"))], headers={"Content-Length": "1000"}))
    with pytest.raises(TriviumError, match="broke before the answer was complete"):
        list(model.stream(HELLO))


def test_a_connection_that_breaks_after_the_answer(server: Server, model: RemoteModel) -> None:
    server.plays(Reply([event(delta("stop", content="ok"))], headers={"Content-Length": "1000"}))
    assert text_of(list(model.stream(HELLO))) == "ok"


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (
            plain({"error": {"message": f"bad key {KEY}"}}, 401),
            UsageError,
            r"check OPENAI_API_KEY .bad key \*\*\*",
        ),
        (plain({"error": {"message": "no access"}}, 403), TriviumError, "403: no access"),
        (plain({"error": {"message": "bad temperature"}}, 400), UsageError, "400: bad temperature"),
        (plain({"detail": "bad field"}, 422), UsageError, "422: bad field"),
        (plain({"object": "error", "message": "flat"}, 400), UsageError, "flat"),
        (plain(["odd"], 400), UsageError, "odd"),
        (
            Reply([b"<b>\x1b[31mno\n"], 500, content_type="text/html"),
            TriviumError,
            "500: <b> .31mno",
        ),
        (Reply([], 500), TriviumError, "500: Internal Server Error"),
        (
            plain(
                {"error": {"message": "This model's maximum context length is 8 tokens, not 9"}},
                400,
            ),
            UsageError,
            "too long for apple: .* 8 tokens, not 9; .*/clear",
        ),
        (
            plain(
                {"error": {"message": "request too big", "code": "context_length_exceeded"}}, 400
            ),
            UsageError,
            "too long for apple",
        ),
        (plain({}, 307, Location="https://else.where/v1"), UsageError, "set OPENAI_BASE_URL to it"),
        (Reply([b"<html>"], content_type="text/html; charset=utf-8"), UsageError, "a web page"),
        (plain({"choices": []}), TriviumError, "without a choice"),
        (plain({"error": {"message": "boom"}}), TriviumError, "boom"),
    ],
)
def test_a_refusal_is_one_clear_line(
    server: Server, model: RemoteModel, reply: Reply, kind: type[Exception], message: str
) -> None:
    server.plays(reply)
    with pytest.raises(kind, match=message) as caught:
        list(model.stream(HELLO))
    text = str(caught.value)
    assert text.isprintable() and len(text) < 700 and KEY not in text


def test_a_model_that_is_not_there(server: Server, model: RemoteModel) -> None:
    server.plays(plain({"error": {"message": "no", "code": "model_not_found"}}, 404))
    with pytest.raises(NotFound, match=r"has no model 'apple'; it has apple, pear$"):
        list(model.stream(HELLO))
    assert model.available() == ["apple", "pear"]


def test_names_of_models_that_cannot_be_shown_are_left_out(
    server: Server, model: RemoteModel
) -> None:
    server.models = ["apple", "\x1b[31mred", "two\nlines"]
    assert model.available() == ["apple"]


def test_an_endpoint_that_is_not_there(server: Server, model: RemoteModel) -> None:
    server.models = None
    server.plays(Reply([b"not found"], 404, content_type="text/plain"))
    with pytest.raises(NotFound, match="is OPENAI_BASE_URL right"):
        list(model.stream(HELLO))


def test_a_server_that_knows_no_stream_options(server: Server, model: RemoteModel) -> None:
    ok = Reply([event(delta("stop", content="ok"))])
    server.plays(plain({"error": {"message": "unknown field stream_options"}}, 400), ok, ok)
    assert list(model.stream(HELLO)) == [TextDelta("ok"), Finish("stop", Usage(0, 1))]
    list(model.stream(HELLO))
    assert ["stream_options" in request for request in server.requests] == [True, False, False]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_load_is_waited_out(
    server: Server, model: RemoteModel, naps: list[float], status: int
) -> None:
    busy = plain({"error": {"message": "loading"}}, status)
    server.plays(busy, busy, Reply([event(delta("stop", content="ok"))]))
    assert text_of(list(model.stream(HELLO))) == "ok"
    assert len(naps) == 2 and 0.5 <= naps[0] < naps[1] < 2


def test_load_that_lasts(server: Server, model: RemoteModel, naps: list[float]) -> None:
    server.plays(*[plain({"error": {"message": "loading"}}, 503)] * 9)
    with pytest.raises(TriviumError, match="503: loading"):
        list(model.stream(HELLO))
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("retry_after", "least"),
    [("7", 7), (formatdate(NOW + 20, usegmt=True), 20), ("soon", 0)],
)
def test_the_server_says_how_long_to_wait(
    server: Server, model: RemoteModel, naps: list[float], retry_after: str, least: float
) -> None:
    busy = plain({}, 429, **{"Retry-After": retry_after})
    server.plays(busy, Reply([event(delta("stop", content="ok"))]))
    assert text_of(list(model.stream(HELLO))) == "ok"
    assert least <= naps[0] <= 30


@pytest.mark.parametrize(
    "busy",
    [
        plain({"error": {"message": "slow"}}, 429, **{"Retry-After": "3600"}),
        plain({"error": {"message": "paid up?", "code": "insufficient_quota"}}, 429),
    ],
)
def test_what_waiting_does_not_mend_is_not_waited_for(
    server: Server, model: RemoteModel, naps: list[float], busy: Reply
) -> None:
    server.plays(busy)
    with pytest.raises(TriviumError, match="429"):
        list(model.stream(HELLO))
    assert naps == []


def test_nothing_answers(naps: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(TriviumError, match=f"nothing answers at {url} .*: start the server"):
            list(RemoteModel("apple", base_url=url).stream(HELLO))
        with pytest.raises(TriviumError, match="nothing answers"):
            RemoteModel("apple", base_url=url).available()
    assert len(naps) == 4


def test_no_tls_where_tls_is_expected(server: Server, naps: list[float]) -> None:
    url = server.url.replace("http:", "https:")
    with pytest.raises(TriviumError, match="SSL_CERT_FILE"):
        list(RemoteModel("apple", base_url=url, api_key=KEY).stream(HELLO))
    assert naps == [], "a certificate does not get better by waiting"


def test_silence_ends_in_an_error(server: Server) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(TriviumError, match=r"was silent for 0.1 seconds"):
            list(RemoteModel("apple", base_url=url, timeout=0.1).stream(HELLO))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000/v1", "must start with http"),
        ("ftp://host/v1", "must start with http"),
        ("http://", "must start with http"),
        ("http://host:port/v1", "is not a URL"),
        ("https://user:hunter2@host/v1", "no user, query"),
        ("https://host/v1?key=hunter2", "no user, query"),
    ],
)
def test_a_bad_address(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        RemoteModel("apple", base_url=url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-“quoted”", "sk-a\nb"])
def test_a_bad_key(key: str) -> None:
    with pytest.raises(UsageError, match="characters that no key has") as caught:
        RemoteModel("apple", base_url="http://localhost/v1", api_key=key)
    assert key not in str(caught.value)


def test_openai_itself_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UsageError, match="set OPENAI_API_KEY"):
        RemoteModel("gpt-5-mini")
    body = RemoteModel("gpt-5-mini", api_key=KEY, max_tokens=5).request(HELLO)
    assert body["max_completion_tokens"] == 5 and "max_tokens" not in body


def test_a_key_over_plain_http_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    Endpoint("http://127.0.0.1/v1", KEY)
    Endpoint("http://[::1]:80/v1", KEY)
    Endpoint("https://example.org/v1", KEY)
    Endpoint("http://example.org/v1")
    assert not caplog.records
    Endpoint("http://example.org/v1", KEY)
    (record,) = caplog.records
    assert "unencrypted to example.org" in record.getMessage()


def test_the_key_is_not_logged(
    server: Server, model: RemoteModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    play(server, model, event(delta("stop", content="ok")), DONE)
    assert KEY not in caplog.text and KEY not in repr(model) and KEY not in str(vars(model))
