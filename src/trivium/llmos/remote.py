"""A chat model behind any endpoint that speaks OpenAI's chat completions over HTTP.

RemoteModel("gpt-5-mini")                                  OPENAI_BASE_URL, OPENAI_API_KEY
RemoteModel("qwen3", base_url="http://localhost:8080/v1")  a server on this machine
"""

import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from trivium.errors import NotFound, TriviumError, UsageError
from trivium.llmos.endpoint import Endpoint, complaint, error_of, whole
from trivium.llmos.messages import Message, ModelEvent
from trivium.llmos.openai_stream import Completion, server_sent_events
from trivium.llmos.tools import Tool

if TYPE_CHECKING:
    import httpx

OPENAI = "https://api.openai.com/v1"


class RemoteModel:
    """Streams from `base_url`/chat/completions; `timeout` is the longest silence, in seconds."""

    images = True  # image parts are passed on; an endpoint that cannot read them says so itself
    context: int | None = None  # the API does not tell

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        timeout: float = 300.0,
        retries: int = 2,
    ) -> None:
        if not model:
            raise UsageError("a remote model needs a name: -m remote:NAME")
        url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
        key = api_key or os.environ.get("OPENAI_API_KEY") or ""
        self.model = model
        self.name = f"remote:{model}"
        self._endpoint = Endpoint(url, key, timeout=timeout, retries=retries)
        if self._endpoint.url == OPENAI and not key:
            raise UsageError(
                "no key for api.openai.com: set OPENAI_API_KEY, "
                "or OPENAI_BASE_URL to another endpoint"
            )
        # OpenAI renamed the limit and refuses the old name; other servers know only the old one.
        limit = "max_completion_tokens" if self._endpoint.url == OPENAI else "max_tokens"
        self._options = {"temperature": temperature, limit: max_tokens, "seed": seed}
        self.on_this_machine = self._endpoint.loopback
        self._include_usage = True

    def stream(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> Iterator[ModelEvent]:
        """Yield text as it arrives, then the tool calls, then `Finish`.

        Closing the generator closes the connection, on which servers stop generating. Raises
        UsageError (key, context length, bad request), NotFound (model) or TriviumError (the rest).
        """
        import httpx

        url = self._endpoint.url
        try:
            with self._endpoint.client() as client:  # whose end closes the connection
                yield from self._read(self._post(client, self.request(messages, tools)))
        except httpx.TimeoutException as error:
            raise TriviumError(
                f"{url} was silent for {self._endpoint.timeout:g} seconds: is it overloaded?"
            ) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise TriviumError(
                f"the connection to {url} broke before the answer was complete "
                f"({self._endpoint.line(error)})"
            ) from error

    def request(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> dict[str, Any]:
        """The body that is posted."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [_sendable(message) for message in messages],
            "stream": True,
        }
        if self._include_usage:
            body["stream_options"] = {"include_usage": True}
        if tools:
            body["tools"] = [tool.to_json() for tool in tools]
        return body | {name: value for name, value in self._options.items() if value is not None}

    def available(self) -> list[str]:
        """The names of the models that the endpoint offers, sorted; none when it cannot tell."""
        with self._endpoint.client() as client:
            return self._endpoint.models(client)

    def _post(self, client: "httpx.Client", body: dict[str, Any]) -> "httpx.Response":
        """Ask for the answer and return its open stream."""
        response = self._endpoint.send(client, "/chat/completions", body)
        if response.status_code == 200:
            return response
        message, _ = complaint(response)
        if "stream_options" in message and body.pop("stream_options", None):
            self._include_usage = False  # an older server: do without the usage
            return self._post(client, body)
        if response.status_code == 404:
            raise self._missing(client, message)
        raise self._endpoint.refused(response, self.model)

    def _missing(self, client: "httpx.Client", message: str) -> NotFound:
        """Tell a model that is not there from an endpoint that is not there."""
        url, line = self._endpoint.url, self._endpoint.line
        names = self._endpoint.models(client)
        if not names:
            return NotFound(
                f"{url} answers 404 ({line(message)}): is OPENAI_BASE_URL right? "
                "It usually ends with /v1"
            )
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        return NotFound(
            f"{url} has no model {self.model!r}; it has {line(', '.join(names[:12]))}{more}"
        )

    def _read(self, response: "httpx.Response") -> Iterator[ModelEvent]:
        import httpx

        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        completion = Completion()
        if kind == "text/html":
            raise UsageError(
                f"{self._endpoint.url} answers with a web page: is OPENAI_BASE_URL right? "
                "It usually ends with /v1"
            )
        if kind == "application/json":  # a server that does not stream
            yield from completion.whole(self._object("", whole(response).text))
        else:
            try:
                for event, data in server_sent_events(response.iter_bytes()):
                    if data.strip() == "[DONE]":
                        completion.complete = True
                        break
                    yield from completion.chunk(self._object(event, data))
            except httpx.TransportError:
                if not completion.complete:  # after the last piece, a lost connection loses nothing
                    raise
            if not completion.complete:
                raise TriviumError(f"{self._endpoint.url} hung up before the answer was complete")
        yield from completion.end()

    def _object(self, event: str, text: str) -> dict[str, Any]:
        """The JSON object in `text`. Raises TriviumError when it is none, or reports an error."""
        url, line = self._endpoint.url, self._endpoint.line
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if event == "error" or (isinstance(value, dict) and value.get("error")):
            message, _ = error_of(value, text)
            raise TriviumError(f"{url} failed while answering: {line(message)}")
        if not isinstance(value, dict):
            raise TriviumError(f"{url} sent what is not an answer: {line(text)}")
        return value


def _sendable(message: Message) -> dict[str, Any]:
    """The message as JSON. Arguments that a model malformed are wrapped: servers parse them."""
    record = message.to_json()
    for call, sent in zip(message.tool_calls, record.get("tool_calls", ()), strict=True):
        try:
            call.parsed()
        except ValueError:
            sent["function"]["arguments"] = json.dumps({"malformed": call.arguments})
    return record
