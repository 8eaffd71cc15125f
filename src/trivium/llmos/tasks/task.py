"""A task: what is asked of every text, the form of its answer, and examples of both.

No text is cut silently: what does not fit is done in pieces, and the answers are put together.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from trivium.errors import NotFound, UsageError
from trivium.files import read_json_lines
from trivium.llmos.tasks.asking import Asker, Example, Form, ItemError, Outcome, Prompt, validated
from trivium.llmos.tasks.pieces import pieces

SHORT, LONG = 256, 1024  # tokens of a piece that is worked on closely, or read


def read_examples(path: Path) -> tuple[Example, ...]:
    """The examples of a JSONL file: {"input": …, "output": …} on every line."""
    try:
        records = list(read_json_lines(path))
    except FileNotFoundError:
        raise NotFound(f"no such file: {path}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    for number, record in enumerate(records, start=1):
        if not isinstance(record.get("input"), str) or "output" not in record:
            raise UsageError(f'{path}: example {number} must be {{"input": TEXT, "output": …}}')
    return tuple(Example(record["input"], record["output"]) for record in records)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """`instruction` is added to what the task says; `max_tokens` bounds one answer of the model."""

    examples: tuple[Example, ...] = ()
    instruction: str = ""
    max_tokens: int = 1024

    name: ClassVar[str]
    asks: ClassVar[str] = ""
    head: ClassVar[str] = "Text"
    tail: ClassVar[str] = "Answer"

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(self.examples))
        for number, example in enumerate(self.examples, start=1):
            try:
                self.written(example)
            except ItemError as error:
                wrong = str(error).removeprefix("the answer ")
                raise UsageError(f"the output of example {number} {wrong}") from None

    @property
    @abstractmethod
    def schema(self) -> Mapping[str, Any]:
        """The JSON schema of what the model writes."""

    @abstractmethod
    def run(self, asker: Asker, text: str) -> Outcome:
        """The answer for one text. Raises ItemError where there is none."""

    def written(self, example: Example) -> str:
        """The answer of an example as the model is to write it. Raises ItemError if it is wrong."""
        value, names = example.output, list(self.schema.get("properties", ()))
        if len(names) == 1 and not isinstance(value, Mapping):
            value = {names[0]: value}
        return dumped(validated(value, Form(self.schema)))

    @property
    def prompt(self) -> Prompt:
        """The prompt without a text: what all texts share."""
        said = " ".join(filter(None, (self._says(), self.instruction)))
        shown = tuple((example.input, self.written(example)) for example in self.examples)
        return Prompt(said, "", shown, self.head, self.tail)

    @property
    def fingerprint(self) -> str:
        """The same for the same task, and for no other."""
        return hashlib.sha256(repr(self).encode(errors="replace")).hexdigest()[:16]

    def _says(self) -> str:
        return self.asks

    def _pieces(self, asker: Asker, text: str, limit: int | None = None) -> list[str]:
        room = asker.room(self.prompt, self.max_tokens)
        return pieces(text, min(room, limit or room), asker.tokens)


def record(properties: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + f" or {words[-1]}" if len(words) > 1 else words[0]
