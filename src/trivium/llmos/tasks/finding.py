"""Tasks whose answer stands in the text, word for word: names, and the answer to a question."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from trivium.errors import UsageError
from trivium.llmos.tasks.asking import Asker, Example, Form, ItemError, Outcome
from trivium.llmos.tasks.copying import copy_rule, literal
from trivium.llmos.tasks.pieces import by_relevance, pieces
from trivium.llmos.tasks.task import LONG, SHORT, Task, dumped, listed, record


@dataclass(frozen=True)
class Extract(Task):
    """{"entities": [{"text": …, "type": …, "start": …, "end": …}]}: names of the given types, word
    for word, in the order of the text. text[start:end] is the name."""

    types: Sequence[str] = ("person", "organization", "place")

    name: ClassVar[str] = "extract"
    tail: ClassVar[str] = "Entities"

    def __post_init__(self) -> None:
        object.__setattr__(self, "types", tuple(dict.fromkeys(self.types)))
        if not self.types or not all(map(str.strip, self.types)):
            raise UsageError("the types of what is to be extracted must not be empty")
        super().__post_init__()

    @property
    def schema(self) -> Mapping[str, Any]:
        kinds = {"type": "string", "enum": list(self.types)}
        entity = record({"text": {"type": "string", "minLength": 1}, "type": kinds})
        return record({"entities": {"type": "array", "items": entity}})

    def written(self, example: Example) -> str:
        text = super().written(example)
        if wrong := _not_in(example.input, json.loads(text)):
            raise ItemError(f"the answer is wrong: {wrong}")
        return text

    def run(self, asker: Asker, text: str) -> Outcome:
        found: list[dict[str, Any]] = []
        begin, cut = 0, False
        for part in self._pieces(asker, text, SHORT):
            ask = self._led if asker.guided else self._asked
            named, short = ask(asker, part)
            found += [
                {**one, "start": begin + one["start"], "end": begin + one["end"]} for one in named
            ]
            begin, cut = begin + len(part), cut or short
        return Outcome({"entities": found}, cut)

    def _led(self, asker: Asker, text: str) -> tuple[list[dict[str, Any]], bool]:
        """Name by name, each a piece of what follows the one before: so it ends, and none is told
        twice."""
        prompt, begun = self.prompt.about(text), '{"entities": ['
        found: list[dict[str, Any]] = []
        end = 0
        while text[end:].strip():
            comma = ", " if found else ""
            said, cut = asker.write(prompt, begun, self._next(text[end:], comma), self.max_tokens)
            if said == "]}" or cut:
                return found, cut
            one = json.loads(said.removeprefix(comma))
            start = text.index(one["text"], end)
            end = start + len(one["text"])
            name = one["text"].strip()
            start += one["text"].index(name)
            found.append({**one, "text": name, "start": start, "end": start + len(name)})
            begun += said
        return found, False

    def _next(self, rest: str, comma: str) -> str:
        """A grammar of the next name, or of the end."""
        before, between = literal(f'{comma}{{"text": "'), literal('", "type": ')
        kinds = " | ".join(literal(dumped(kind)) for kind in self.types)
        return f'start: {before} COPY {between} KIND "}}" | "]}}"\nKIND: {kinds}\n{copy_rule(rest)}'

    def _asked(self, asker: Asker, text: str) -> tuple[list[dict[str, Any]], bool]:
        """All at once. The names are looked up in their order, each behind the one before it, or
        where it stands first."""
        form = Form(self.schema, check=lambda value: _not_in(text, value))
        outcome = asker.ask(self.prompt.about(text), form, self.max_tokens)
        found: list[dict[str, Any]] = []
        last: dict[str, int] = {}  # where the search for the same name goes on
        for one in outcome.value["entities"]:
            start = text.find(one["text"], last.get(one["text"], 0))
            if start < 0:
                continue  # told more often than it stands there
            last[one["text"]] = end = start + len(one["text"])
            found.append({**one, "start": start, "end": end})
        return sorted(found, key=lambda one: int(one["start"])), outcome.cut

    def _says(self) -> str:
        return f"List every {listed(self.types)} that the text names, word for word, as JSON."


@dataclass(frozen=True)
class Answer(Task):
    """{"answer": …, "quote": …}, the quote word for word from the document; both are null where the
    document does not tell.

    Give the `question`, and the texts are documents; or the `document`, and they are questions. The
    pieces of a long document are asked in the order of what they share with the question, until one
    of them tells.
    """

    question: str = ""
    document: str = ""

    name: ClassVar[str] = "answer"
    head: ClassVar[str] = "Document"
    asks: ClassVar[str] = (
        "Answer the question from the document, as JSON: first quote the words that tell it, then "
        "answer in short. Where the document does not tell, both are null."
    )

    def __post_init__(self) -> None:
        if bool(self.question.strip()) is bool(self.document.strip()):
            raise UsageError("a task `answer` has either a question or a document of its own")
        super().__post_init__()

    @property
    def schema(self) -> Mapping[str, Any]:
        text = {"type": ["string", "null"]}
        return record({"quote": text, "answer": text})

    def run(self, asker: Asker, text: str) -> Outcome:
        question, document = (text, self.document) if self.document else (self.question, text)
        spare = asker.tokens(question) + 16
        room = asker.room(self.prompt, self.max_tokens) - spare
        parts = pieces(document, max(min(room, LONG), 1), asker.tokens)
        for i in by_relevance(question, parts):
            outcome = self._once(asker, question, parts[i])
            if outcome.value["answer"] is not None:
                return outcome
        return Outcome({"answer": None, "quote": None})

    def _once(self, asker: Asker, question: str, document: str) -> Outcome:
        begin, between = literal('{"quote": "'), literal('", "answer": ')
        nothing = literal('{"quote": null, "answer": null}')
        lark = (
            f'start: {nothing} | {begin} COPY {between} value "}}"\n'
            f'value: %json {{"type": "string", "minLength": 1}}\n{copy_rule(document)}'
        )

        def wrong(value: Any) -> str | None:
            quote = value["quote"]
            if quote is None or quote in document:
                return None
            return f"the quote {quote[:60]!r} is not in the document, word for word"

        prompt = self.prompt.about(f"{document}\n\nQuestion: {question}")
        outcome = asker.ask(prompt, Form(self.schema, lark, wrong), self.max_tokens)
        quote, said = outcome.value["quote"], outcome.value["answer"]
        return Outcome({"answer": said, "quote": quote.strip() if quote else None}, outcome.cut)


def _not_in(text: str, value: Any) -> str | None:
    for one in value["entities"]:
        if one["text"] not in text:
            return f"{one['text'][:60]!r} is not in the text, word for word"
    return None
