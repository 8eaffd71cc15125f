"""Who may ask, and how much: keys, hosts, origins, sizes, and what is no request at all."""

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from tests.server.conftest import running

from trivium.errors import TriviumError, UsageError
from trivium.server.app import Settings
from trivium.server.errors import ApiError
from trivium.server.guard import DEPTH, Access, hostname, is_loopback, read_json
from trivium.server.run import bind
from trivium.server.served import Models

KEY = "sk-secret"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}


@pytest.fixture(scope="module")
def locked(served: Callable[..., Models]) -> Iterator[str]:
    """A server that wants a key."""
    with running(served(), Settings(Access(KEY))) as url:
        yield url


def fault(answer: httpx.Response) -> dict[str, Any]:
    """The error in an answer, whose shape is checked."""
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"]
    return dict(error)


@pytest.mark.parametrize(
    ("header", "status", "code"),
    [
        (None, 401, "missing_api_key"),
        ("", 401, "missing_api_key"),
        (f"Basic {KEY}", 401, "missing_api_key"),
        ("Bearer", 401, "invalid_api_key"),
        ("Bearer sk-wrong", 401, "invalid_api_key"),
        (f"Bearer {KEY}x", 401, "invalid_api_key"),
        ("Bearer \xff", 401, "invalid_api_key"),
        (f"Bearer {KEY}", 200, None),
        (f"bearer  {KEY}", 200, None),
    ],
)
def test_keys(locked: str, header: str | None, status: int, code: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for path in ("/v1/models", "/metrics", "/openapi.json"):
        answer = httpx.get(locked + path, headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == status
        if code is not None:
            assert fault(answer)["code"] == code
            assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{locked}/health").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost.evil.example:80"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "[::"}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "http://127.0.0.1"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[::"}, 403),
        ({"Origin": "http://evil.example", "Host": "evil.example"}, 403),
    ],
    ids=str,
)
def test_hosts_and_origins(url: str, headers: dict[str, str], status: int) -> None:
    answer = httpx.get(f"{url}/v1/models", headers=headers)
    assert answer.status_code == status
    allowed = answer.headers.get("access-control-allow-origin")
    assert allowed == (headers.get("Origin") if status == 200 else None)
    if status == 403:
        assert fault(answer)["code"] in ("bad_host", "bad_origin")


def test_a_page_of_this_machine_may_ask(locked: str) -> None:
    asks = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{locked}/v1/chat/completions", headers=asks)
    assert answer.status_code == 204
    assert "authorization" in answer.headers["access-control-allow-headers"]
    asks["Origin"] = "http://evil.example"
    assert httpx.options(f"{locked}/v1/chat/completions", headers=asks).status_code == 403


def deep(n: int) -> bytes:
    return b'{"model": "tiny", "messages": ' + b"[" * n + b"]" * n + b"}"


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"", "application/json", 400, "invalid_json"),
        (b"{", "application/json", 400, "invalid_json"),
        (b"[]", "application/json", 400, "invalid_json"),
        (b"null", "application/json", 400, "invalid_json"),
        (b"\xff\xfe", "application/json", 400, "invalid_json"),
        (b'{"model": NaN}', "application/json", 400, "invalid_json"),
        (b'{"model": ' + b"9" * 5000 + b"}", "application/json", 400, "invalid_json"),
        (deep(10), "application/json", 400, "invalid_value"),
        (deep(100_000), "application/json", 400, "invalid_json"),
        (b'"' + b"\\" * 100_001, "application/json", 400, "invalid_json"),
        (b"{}", "text/plain", 415, "wrong_content_type"),
        (b"{}", "", 415, "wrong_content_type"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "wrong_content_type"),
        (b" " * (5 << 20), "application/json", 413, "request_too_large"),
        (b'{"model": "gpt\\ud800", "messages": [{"role": "user"}]}', "application/json", 404, None),
        (
            b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
            "application/json; charset=utf-8",
            400,
            "invalid_value",
        ),
    ],
    ids=range(16),
)
def test_what_is_no_request(
    url: str, body: bytes, kind: str, status: int, code: str | None
) -> None:
    headers = {"Content-Type": kind}
    answer = httpx.post(f"{url}/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert code is None or fault(answer)["code"] == code


def test_a_body_that_hides_its_size(url: str) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(80):
            yield b" " * (1 << 16)

    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{url}/v1/completions", content=pieces(), headers=headers)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models", 405)],
)
def test_other_ways(url: str, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, url + path)
    assert answer.status_code == status
    fault(answer)


def test_unknown_fields_are_ignored(url: str) -> None:
    body = CHAT | {"user": "me", "store": True, "service_tier": {"x": [1]}, "stop": None}
    body |= {"reasoning_effort": "low", "metadata": {}, "parallel_tool_calls": True}
    assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200


def test_metrics(url: str) -> None:
    before = httpx.get(f"{url}/metrics").text
    httpx.post(f"{url}/v1/chat/completions", json=CHAT)
    httpx.get(f"{url}/no/such/{'x' * 50}")
    text = httpx.get(f"{url}/metrics").text
    line = 'trivium_requests_total{route="/v1/chat/completions",status="200"} '

    def value(text: str, name: str) -> float:
        return float(text.partition(f"\n{name}")[2].split("\n")[0] or 0)

    assert value(text, line) == value(before, line) + 1
    assert "no/such" not in text, "a path is no label"
    for name in ("first_token_seconds_count", "kv_cache_tokens ", "slots ", "models_ready "):
        assert name in text
    made = 'trivium_tokens_total{kind="completion"} '
    assert value(before, made) < value(text, made) <= value(before, made) + 3


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("a.localhost", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.com", False),
        ("", False),
    ],
)
def test_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_names_of_hosts() -> None:
    assert hostname("[::1]:80") == "::1" and hostname("A:1") == "a" and hostname("[") == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_an_open_address_needs_a_key(host: str) -> None:
    for key in (None, ""):
        with pytest.raises(UsageError, match="--api-key"):
            bind(host, 0, key)
    bind(host, 0, KEY).close()


def test_the_other_loopback(served: Callable[..., Models]) -> None:
    if not has_ipv6():
        pytest.skip("no IPv6 on this machine")
    with running(served(), host="::1") as url:
        assert url.startswith("http://[::1]:")
        assert httpx.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 200
        for host in ("evil.example", "[::2]:80", "127.0.0.1.evil.example"):
            assert httpx.get(f"{url}/v1/models", headers={"Host": host}).status_code == 403


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


def test_addresses_that_cannot_be_had() -> None:
    with bind("127.0.0.1", 0, None) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TriviumError, match=f"port {port} .* is taken.*--port"):
            bind("127.0.0.1", port, None)
    with pytest.raises(UsageError, match="no address"):
        bind("no such host", 0, None)
    with pytest.raises(TriviumError, match="cannot listen"):
        bind("192.0.2.1", 0, KEY)


def test_json_is_read_strictly() -> None:
    assert read_json(b'{"a": ["[[[", {"b": "\\"{"}]}') == {"a": ["[[[", {"b": '"{'}]}
    nested = b"[" * DEPTH + b"]" * DEPTH
    assert json.dumps(read_json(nested)).encode() == nested
    for wrong in (b"[" + nested + b"]", b"[NaN]", b"", b"1 2"):
        with pytest.raises(ApiError):
            read_json(wrong)


def test_a_request_that_is_not_http(url: str) -> None:
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as raw:
        raw.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert b"400" in raw.recv(1000)
    assert httpx.get(f"{url}/health").status_code == 200


def test_a_slow_body_is_given_up(
    served: Callable[..., Models], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trivium.server.guard.BODY_SECONDS", 0.2)
    with running(served()) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            )
            assert b" 408 " in raw.recv(1000)
