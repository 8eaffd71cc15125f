"""An HTTP endpoint that speaks OpenAI's API: address, key, repetition, and errors as one line.

Requests that were refused for load (429, 502, 503, 504) or that never reached the server are
repeated, until the first byte of an answer. The key is sent to the endpoint and shown nowhere.
"""

import ipaddress
import json
import logging
import random
import re
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from trivium.errors import TriviumError, UsageError

if TYPE_CHECKING:  # loaded with the first endpoint: nothing else needs an HTTP client
    import httpx

BUSY = (429, 502, 503, 504)
LONGEST_WAIT = 30.0  # seconds; a server that asks for more is reported, not waited for
LONGEST_BODY = 64 << 20  # bytes
KEPT_HEADERS = ("content-type", "location", "retry-after")
TOO_LONG = re.compile(r"context.?(length|size|window)|maximum context|too many tokens", re.I)


class Endpoint:
    """`timeout` is the longest silence in seconds, `retries` how often a request is repeated."""

    def __init__(
        self, url: str, key: str = "", *, timeout: float = 300.0, retries: int = 2
    ) -> None:
        import httpx

        try:
            parsed = httpx.URL(url.strip())
        except httpx.InvalidURL as error:
            raise UsageError(f"OPENAI_BASE_URL {url!r} is not a URL: {error}") from error
        if (
            parsed.userinfo or parsed.query or parsed.fragment
        ):  # may hold secrets: not repeated here
            raise UsageError(
                "OPENAI_BASE_URL must hold no user, query or fragment; keys go in OPENAI_API_KEY"
            )
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UsageError(
                f"OPENAI_BASE_URL {url!r} must start with http:// or https:// and name a host"
            )
        self.url = str(parsed).rstrip("/")
        self.timeout = timeout
        self._key, self._retries = key.strip(), retries
        self.loopback = _is_loopback(parsed.host)
        self._trust: ssl.SSLContext | None = None
        if not (self._key.isascii() and self._key.isprintable()):
            raise UsageError("OPENAI_API_KEY holds characters that no key has: copy it again")
        if self._key and parsed.scheme == "http" and not self.loopback:
            logging.getLogger(__name__).warning(
                "the API key travels unencrypted to %s: use https, or unset OPENAI_API_KEY",
                parsed.host,
            )

    def client(self) -> "httpx.Client":
        import httpx

        self._trust = self._trust or httpx.create_ssl_context()
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else None,
            timeout=httpx.Timeout(self.timeout, connect=10.0),
            verify=self._trust,
            trust_env=not self.loopback,  # no proxy between us and a server on this machine
        )

    def send(
        self, client: "httpx.Client", path: str, body: Mapping[str, Any] | None = None
    ) -> "httpx.Response":
        """Post `body`, or get when there is none. The response is open when its status is 200,
        read otherwise. Raises TriviumError when the server cannot be reached."""
        import httpx

        # JSON in ASCII, so that a lone surrogate stays an escape and can be sent.
        content = None if body is None else json.dumps(body).encode()
        headers = None if body is None else {"Content-Type": "application/json"}
        method = "GET" if body is None else "POST"
        request = client.build_request(method, path, content=content, headers=headers)
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            pause = 0.5 * 2**attempt * random.uniform(1.0, 1.25)
            try:
                response = client.send(request, stream=True)
                if response.status_code == 200:
                    return response
                response = whole(response)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError) as error:
                if last or _tls(error):
                    raise self._unreachable(error) from error
            else:
                wait = _retry_after(response) or 0.0
                hopeless = "insufficient_quota" in complaint(response)[1] or wait > LONGEST_WAIT
                if last or hopeless or response.status_code not in BUSY:
                    return response
                pause = max(pause, wait)
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def models(self, client: "httpx.Client") -> list[str]:
        """The names of the models that are offered, sorted; none when the endpoint cannot tell."""
        response = self.send(client, "/models")
        if response.status_code != 200:
            return []
        try:
            names = [str(model["id"]) for model in json.loads(whole(response).content)["data"]]
            return sorted(name for name in names if name.isprintable())
        except (ValueError, RecursionError, LookupError, TypeError):
            return []

    def refused(self, response: "httpx.Response", model: str) -> TriviumError:
        """The error for an answer whose status is not 200."""
        status, (message, code) = response.status_code, complaint(response)
        says, message = f"{self.url} answers {status}", self.line(message)
        if status == 401:
            way = "check OPENAI_API_KEY" if self._key else "set OPENAI_API_KEY"
            return UsageError(f"{says}, it does not take the API key: {way} ({message})")
        if status in (400, 413) and TOO_LONG.search(f"{code} {message}"):
            return UsageError(
                f"the conversation is too long for {model}: {message}; shorten the input, "
                "or start a new conversation (/clear in a chat)"
            )
        if status in (400, 422):
            return UsageError(f"{says}: {message}")
        if 300 <= status < 400:
            target = self.line(response.headers.get("location", "elsewhere"))
            return UsageError(f"{says}, a redirect to {target}: set OPENAI_BASE_URL to it")
        wait = _retry_after(response)
        again = f"; try again in {wait:.0f} seconds" if wait else ""
        return TriviumError(f"{says}: {message}{again}")

    def line(self, text: object) -> str:
        """What somebody else wrote, as one line fit for a message: short, printable, no key."""
        line = str(text) or type(text).__name__
        if self._key:
            line = line.replace(self._key, "***")
        line = " ".join("".join(c if c.isprintable() else " " for c in line).split())
        return line if len(line) <= 400 else line[:400] + "…"

    def _unreachable(self, error: Exception) -> TriviumError:
        if _tls(error):
            return TriviumError(
                f"the TLS certificate of {self.url} is not trusted ({self.line(error)}): "
                "set SSL_CERT_FILE to the authority that signed it"
            )
        return TriviumError(
            f"nothing answers at {self.url} ({self.line(error)}): start the server, or set "
            "OPENAI_BASE_URL"
        )


def whole(response: "httpx.Response") -> "httpx.Response":
    """Read an answer to its end, up to a bound, and give it back closed."""
    import httpx

    body = bytearray()
    try:
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > LONGEST_BODY:
                raise TriviumError(f"the endpoint sent an answer of over {LONGEST_BODY >> 20} MB")
    finally:
        response.close()
    headers = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
    return httpx.Response(response.status_code, headers=headers, content=bytes(body))


def complaint(response: "httpx.Response") -> tuple[str, str]:
    """The message and the code of an answer that reports an error."""
    try:
        record = json.loads(response.content)
    except (ValueError, RecursionError):
        record = None
    return error_of(record, response.text or response.reason_phrase)


def error_of(record: Any, text: str) -> tuple[str, str]:
    """The message and the code of an error, in the shapes that servers use; else `text`."""
    error = record.get("error", record) if isinstance(record, dict) else text
    if not isinstance(error, dict):
        return str(error), ""
    message = error.get("message") or error.get("detail") or text
    return str(message), f"{error.get('code') or ''} {error.get('type') or ''}".strip()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _tls(error: BaseException) -> bool:
    """Whether a connection failed because of TLS, which no repetition mends."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _retry_after(response: "httpx.Response") -> float | None:
    """Seconds that the server asks to wait (RFC 9110, section 10.2.3), if it does."""
    text = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
