"""Tasks whose answer is written: a summary, a translation, JSON of any schema."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trivium.errors import UsageError
from trivium.llmos.tasks.asking import Asker, Form, ItemError, Outcome
from trivium.llmos.tasks.copying import literal
from trivium.llmos.tasks.task import LONG, SHORT, Task, record


@dataclass(frozen=True)
class Summarise(Task):
    """{"summary": …} of at most `words` words. Of a long text, the summaries of its pieces are
    summarised."""

    words: int = 60

    name: ClassVar[str] = "summarise"
    tail: ClassVar[str] = "Summary"

    @property
    def schema(self) -> Mapping[str, Any]:
        return record({"summary": {"type": "string", "minLength": 1}})

    def run(self, asker: Asker, text: str) -> Outcome:
        cut = False
        while len(parts := self._pieces(asker, text, LONG)) > 1:
            outcomes = [self._once(asker, part) for part in parts]
            cut = cut or any(outcome.cut for outcome in outcomes)
            shorter = "\n\n".join(outcome.value["summary"] for outcome in outcomes)
            if len(shorter) >= len(text):
                raise ItemError("the summaries are longer than the text: give fewer --words")
            text = shorter
        last = self._once(asker, parts[0])
        return Outcome(last.value, cut or last.cut)

    def _once(self, asker: Asker, text: str) -> Outcome:
        pattern = rf"^\S+( \S+){{0,{self.words - 1}}}$"
        value = json.dumps({"type": "string", "pattern": pattern})
        begin = literal('{"summary": ')
        lark = f'start: {begin} value "}}"\nvalue: %json {value}'
        limit = min(self.max_tokens, 4 * self.words + 32)
        outcome = asker.ask(self.prompt.about(text), Form(self.schema, lark), limit)
        summary, full = outcome.value["summary"].strip(), len(outcome.value["summary"].split())
        ended = re.search(r"[.!?。！？]['\")\]」』”’）]*$", summary)
        if (full >= self.words or outcome.cut) and not ended:  # stopped in a sentence: without it
            whole = re.match(r"(?s).*[.!?。！？]['\")\]」』”’）]*(?=\s|$)", summary)
            return Outcome({"summary": whole[0] if whole else summary}, whole is None)
        return Outcome({"summary": summary})

    def _says(self) -> str:
        return f"Summarise the text in at most {self.words} words, as JSON."


@dataclass(frozen=True)
class Translate(Task):
    """{"translation": …}. A long text is translated piece by piece."""

    to: str = "English"

    name: ClassVar[str] = "translate"
    tail: ClassVar[str] = "Translation"

    @property
    def schema(self) -> Mapping[str, Any]:
        return record({"translation": {"type": "string", "minLength": 1}})

    def run(self, asker: Asker, text: str) -> Outcome:
        said, cut = "", False
        for part in self._pieces(asker, text, SHORT):
            inner = part.strip()
            if not inner:
                said += part
                continue
            limit = min(self.max_tokens, 4 * asker.tokens(inner) + 64)
            outcome = asker.ask(self.prompt.about(inner), Form(self.schema), limit)
            before, after = part.split(inner)[0], part[part.index(inner) + len(inner) :]
            said += before + outcome.value["translation"].strip() + after
            cut = cut or outcome.cut
        return Outcome({"translation": said}, cut)

    def _says(self) -> str:
        return f"Translate the text into {self.to}, as JSON."


@dataclass(frozen=True)
class Fill(Task):
    """JSON of one's own schema, filled in from the text."""

    form: Mapping[str, Any] | None = None

    name: ClassVar[str] = "fill"
    tail: ClassVar[str] = "JSON"

    def __post_init__(self) -> None:
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for

        try:
            if not isinstance(self.form, Mapping):
                raise UsageError("a JSON schema must be an object")
            validator_for(self.form).check_schema(self.form)
        except SchemaError as error:
            message = " ".join(error.message.split())[:150]
            raise UsageError(f"invalid JSON schema: at {error.json_path}: {message}") from None
        super().__post_init__()

    @property
    def schema(self) -> Mapping[str, Any]:
        assert self.form is not None
        return self.form

    def run(self, asker: Asker, text: str) -> Outcome:
        return asker.ask(self.prompt.about(text), Form(self.schema), self.max_tokens)

    def _says(self) -> str:
        names = [name for name in self.schema.get("properties", ()) if isinstance(name, str)]
        what = f" ({', '.join(names)})" if names else ""
        return f"Fill in JSON{what} from the text."
