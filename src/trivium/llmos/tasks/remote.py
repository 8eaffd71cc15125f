"""Tasks by a chat model that gives text: behind an endpoint with response_format, or any other.

An answer is read as JSON and checked. One that does not follow the form is sent back once, with
what is wrong with it.
"""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, cast

from trivium.errors import UsageError
from trivium.llmos.chat_model import ChatModel
from trivium.llmos.messages import Finish, Message, ModelEvent, TextDelta
from trivium.llmos.remote import RemoteModel
from trivium.llmos.tasks.asking import (
    REMOTE,
    Asker,
    Choice,
    Form,
    ItemError,
    Outcome,
    Prompt,
    validated,
)
from trivium.llmos.tools import Tool

PARALLEL = 8  # requests to an endpoint at once
ATTEMPTS = 2
CHARACTERS = 4  # of a token, about
UNKNOWN_ROOM = 1 << 30  # tokens: the endpoint says itself when a text is too long

_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.S)


class ChatAsker(Asker):
    """`model_for` gives the chat model that answers in a form with so many tokens."""

    guided = False

    def __init__(
        self,
        name: str,
        model_for: Callable[[Form, int], ChatModel],
        *,
        parallel: int = PARALLEL,
    ) -> None:
        self.name, self.parallel = name, parallel
        self._model_for = model_for
        self._cancelled = threading.Event()
        self._worked = False  # has it ever answered?

    def ask(self, prompt: Prompt, form: Form, max_tokens: int) -> Outcome:
        schema = json.dumps(form.schema, ensure_ascii=False)
        model = self._model_for(form, max_tokens)
        *past, last = prompt.messages
        wanted = f"{last.text}\n\nAnswer with JSON of this schema alone: {schema}"
        messages = [*past, Message("user", wanted)]
        for attempt in range(ATTEMPTS):
            said = self._said(model, messages, max_tokens)
            try:
                return Outcome(validated(_parsed(said), form))
            except ItemError as error:
                if attempt == ATTEMPTS - 1:
                    raise
                complaint = f"{error}. Answer again, with JSON of the schema alone."
                messages += [Message("assistant", said), Message("user", complaint)]
        raise AssertionError("the last attempt returns or raises")

    def choose(self, prompt: Prompt, labels: Sequence[str], *, calibrated: bool) -> Choice:
        """The label alone: the API gives no likelihood of whole texts."""
        schema = {
            "type": "object",
            "properties": {"label": {"type": "string", "enum": list(labels)}},
            "required": ["label"],
            "additionalProperties": False,
        }
        shown = tuple((said, json.dumps({"label": label})) for said, label in prompt.shown)
        told = Prompt(prompt.instruction, prompt.text, shown, prompt.head, prompt.tail)
        return Choice(self.ask(told, Form(schema), 64 + max(map(len, labels))).value["label"])

    def write(self, prompt: Prompt, begun: str, lark: str, max_tokens: int) -> tuple[str, bool]:
        raise AssertionError("a chat model answers as a whole (Asker.guided)")

    def tokens(self, text: str) -> int:
        return len(text.encode(errors="replace")) // CHARACTERS + 1

    def room(self, prompt: Prompt, max_tokens: int) -> int:
        return UNKNOWN_ROOM

    def cancel(self) -> None:
        self._cancelled.set()

    def close(self) -> None:
        self.cancel()

    def _said(self, model: ChatModel, messages: Sequence[Message], max_tokens: int) -> str:
        text, reason = "", "stop"
        try:
            stream = cast(Generator[ModelEvent, None, None], model.stream(messages))
            with contextlib.closing(stream) as events:
                for event in events:
                    if self._cancelled.is_set():
                        raise ItemError("stopped")
                    if isinstance(event, TextDelta):
                        text += event.text
                    elif isinstance(event, Finish):
                        reason = event.reason
        except UsageError as error:
            if not self._worked:  # not of this input: nothing was ever answered
                raise
            raise ItemError(str(error)) from error
        if reason == "length":
            raise ItemError(f"the answer did not end within {max_tokens} tokens (--max-tokens)")
        if reason == "content_filter":
            raise ItemError("the endpoint filtered the answer")
        self._worked = True
        return text


class EndpointAsker(ChatAsker):
    """A model behind OPENAI_BASE_URL, whose answers are held to the schema by the server."""

    def __init__(
        self, model: str, *, temperature: float | None = None, seed: int | None = None
    ) -> None:
        self._given = {"temperature": temperature, "seed": seed}
        self._model, self._models = model, dict[str, RemoteModel]()
        self._opened = RemoteModel(model)  # says at once what is wrong with address or key
        self.on_this_machine = self._opened.on_this_machine
        super().__init__(f"{REMOTE}{model}", self._formed)

    def _formed(self, form: Form, max_tokens: int) -> ChatModel:
        key = json.dumps([form.schema, max_tokens], sort_keys=True)
        if key not in self._models:  # which also keeps what opening a connection needs
            self._models[key] = _FormedModel(
                self._model,
                form.schema,
                max_tokens=max_tokens,
                **self._given,
            )
        return self._models[key]


class _FormedModel(RemoteModel):
    def __init__(self, model: str, schema: Mapping[str, Any], **options: Any) -> None:
        super().__init__(model, **options)
        shape = {"name": "answer", "schema": schema, "strict": strict(schema)}
        self._format = {"type": "json_schema", "json_schema": shape}

    def request(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> dict[str, Any]:
        return {**super().request(messages, tools), "response_format": self._format}


def strict(schema: Any) -> bool:
    """Whether OpenAI's API takes the schema as strict: every object lists all of its properties as
    required and allows no others."""
    if isinstance(schema, list):
        return all(map(strict, schema))
    if not isinstance(schema, Mapping):
        return True
    properties = schema.get("properties")
    if schema.get("type") == "object" or isinstance(properties, Mapping):
        closed = schema.get("additionalProperties") is False
        if not closed or set(schema.get("required", ())) != set(properties or ()):
            return False
    return all(map(strict, schema.values()))


def _parsed(text: str) -> Any:
    """The JSON in an answer, which some models put in a fence."""
    fenced = _FENCED.match(text)
    try:
        return json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        raise ItemError(f"the answer is not JSON: {' '.join(text.split())[:80]!r}") from None
