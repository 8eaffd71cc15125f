"""The door of the server: who may ask, and how much.

A page in a browser can reach a server on the same machine, under its own name by DNS rebinding. So
on a loopback address the Host header must name loopback, and an Origin, which browsers send, must
be loopback or the server itself. With a key, every request but /health must carry it. Bodies are
read whole before anything else happens, and are bounded in size, in time and in depth.
"""

import asyncio
import hmac
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trivium.server.errors import ApiError
from trivium.server.metrics import Metrics

BODY = 4 << 20  # bytes
BODY_SECONDS = 30.0
DEPTH = 64  # brackets within brackets
AT_ONCE = 512  # requests inside, whatever they do
OPEN_PATHS = ("/health",)
CORS = {
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "authorization, content-type",
    "Access-Control-Max-Age": "600",
}

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")


@dataclass(frozen=True)
class Access:
    """`key` None: nobody is asked for one. `loopback`: the address served is this machine's."""

    key: str | None = None
    loopback: bool = True


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine, whoever resolves it."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def hostname(authority: str) -> str:
    """The name in HOST, HOST:PORT or [IPV6]:PORT; empty if there is none."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def check_depth(body: bytes) -> None:
    """Raises ApiError for JSON that is nested too deeply to be worked on safely."""
    depth = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub(b"", body)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > DEPTH:
            raise ApiError(400, f"the JSON is nested more than {DEPTH} deep", code="invalid_json")


def read_json(body: bytes) -> Any:
    """The JSON in `body`, as its standard has it: no NaN. Raises ApiError."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    check_depth(body)
    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        fault = " ".join(str(error).split())[:120]
        raise ApiError(400, f"the body is not JSON: {fault}", code="invalid_json") from None


class Guard:
    """An ASGI application that lets through to `app` what may pass, and counts it."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self._app, self._access, self._metrics = app, access, metrics
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if origin is not None and _is_local(origin):
                    out = MutableHeaders(scope=message)
                    out["Access-Control-Allow-Origin"] = origin
                    out["Vary"] = "Origin"
            await send(message)

        with self._metrics.timed() as measured:
            try:
                self._inside += 1
                await self._pass(scope, headers, receive, counted)
            except ApiError as error:
                await error.response()(scope, receive, counted)
            finally:
                self._inside -= 1
                measured(_route(scope), status)

    async def _pass(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        self._check(scope, headers)
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await Response(status_code=204, headers=CORS)(scope, receive, send)
            return
        self._authorise(scope, headers)
        if self._inside > AT_ONCE:
            raise ApiError(503, "too many requests at once", code="overloaded", retry=1)
        if scope["method"] == "POST":
            body = await _body(headers, receive)
            if body is None:
                return
            receive = _replayed(body, receive)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._access.loopback and not is_loopback(hostname(host)):
            raise ApiError(403, f"the host {host[:100]!r} is not this server", code="bad_host")
        same = origin is not None and urlsplit_netloc(origin) == host
        if origin is not None and not _is_local(origin) and not same:
            raise ApiError(
                403, f"pages of {origin[:100]!r} may not use this server", code="bad_origin"
            )

    def _authorise(self, scope: Scope, headers: Headers) -> None:
        if self._access.key is None or scope["path"] in OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise ApiError(
                401, "no key was given: send `Authorization: Bearer KEY`", code="missing_api_key"
            )
        # In constant time: how long it takes must not tell how much of a guess is right.
        if not hmac.compare_digest(given.strip().encode("latin-1"), self._access.key.encode()):
            raise ApiError(401, "the key is wrong", code="invalid_api_key")


def urlsplit_netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _is_local(origin: str) -> bool:
    return is_loopback(hostname(urlsplit_netloc(origin)))


def _route(scope: Scope) -> str:
    """The route's template, of which there are few; a path is anything a client thinks of."""
    return getattr(scope.get("route"), "path", "other")


async def _body(headers: Headers, receive: Receive) -> bytes | None:
    """The whole body; None when the client left. Raises ApiError."""
    too_large = ApiError(413, f"the body is larger than {BODY >> 20} MB", code="request_too_large")
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > BODY:
        raise too_large
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, f"send JSON as application/json, not {kind[:60]!r}", code="wrong_content_type"
        )
    pieces, size = list[bytes](), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                if size > BODY:
                    raise too_large
                if not message.get("more_body"):
                    return b"".join(pieces)
    except TimeoutError:
        raise ApiError(
            408, f"the body did not come within {BODY_SECONDS:g} seconds", code="timeout"
        ) from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` first."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed


class StrictRequest(Request):
    """A request whose JSON is read by `read_json`."""

    async def json(self) -> Any:
        return read_json(await self.body())


Measured = Callable[[str, int], None]
