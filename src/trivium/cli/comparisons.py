"""What `rank` shows: two answers to a prompt, from a file or from models, and the journal of the
choices.

Questions come from records of JSON:

    {"prompt": "…" or messages}                          the models answer
    {"prompt": …, "responses": ["…", "…", "…"]}          all pairs of these are compared

The journal is a file of preferences, as `trivium.data.preferences` reads them. What nothing can be
learnt from, such as a tie, stands in a second file beside it, so that it is not asked again.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trivium.data.corpus import Corpus, blocks_of
from trivium.data.records import PROMPTS, Message, listed, messages_of, said
from trivium.errors import UsageError
from trivium.files import append_json, read_json_lines

ANSWERED = "responses"


class Question(NamedTuple):
    messages: list[Message]
    responses: list[str]


class Questions(Corpus[Question]):
    """The records of a file."""

    kind = "questions"

    def parse(self, record: Any) -> Question:
        if not isinstance(record, dict):
            raise UsageError("expected a JSON object")
        name = next((name for name in PROMPTS if record.get(name)), None)
        if name is None:
            raise UsageError(f"no prompt: it needs one of {', '.join(map(repr, PROMPTS))}")
        if isinstance(record[name], list):
            messages = messages_of(record, "messages", name)
        else:
            messages = [{"role": "user", "content": said(record[name], name)}]
        replies = [said(reply, ANSWERED) for reply in listed(record.get(ANSWERED, []), ANSWERED)]
        if len(replies) == 1:
            raise UsageError(f"{ANSWERED!r} holds one reply: there is nothing to compare it with")
        return Question(messages, replies)


def questions(source: str) -> Questions:
    name, blocks, note = blocks_of(source, records=True)
    return Questions(name, blocks, note=note)


@dataclass(frozen=True)
class Comparison:
    """Two answers; `left` is which of them a person sees on the left, as the key decides."""

    key: str
    messages: list[Message]
    answers: tuple[str, str]
    makers: tuple[str, str] | None = None

    @property
    def left(self) -> int:
        """Drawn by the key, so that it is the same when it is shown again."""
        return int(hashlib.sha256(f"side/{self.key}".encode()).hexdigest(), 16) % 2

    @property
    def shown(self) -> tuple[str, str]:
        return self.answers[self.left], self.answers[1 - self.left]


Answerers = Sequence[tuple[str, Callable[[Sequence[Message]], str]]]  # the two, by name


def comparisons(
    found: Questions, answerers: Answerers, done: Callable[[str], bool]
) -> Iterator[Comparison]:
    """What is still to be compared, in the order of the file. Equal answers are passed over."""
    for question in found:
        prompt = json.dumps(question.messages, ensure_ascii=False, sort_keys=True)
        if question.responses:
            for one, other in itertools.combinations(question.responses, 2):
                key = key_of(prompt, one, other)
                if one != other and not done(key):
                    yield Comparison(key, question.messages, (one, other))
        elif not answerers:
            raise UsageError(
                f"{found.name}: a question has no {ANSWERED!r}, and no model was given to answer it"
            )
        else:
            names = (answerers[0][0], answerers[1][0])
            key = key_of(prompt, *names)
            if not done(key):
                first, second = (answer(question.messages) for _, answer in answerers)
                if first.strip() != second.strip():
                    yield Comparison(key, question.messages, (first, second), names)


def key_of(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


class Journal:
    """What was chosen so far, and a place for the next choice. Each is on the disk when `add`
    returns.

    count: choices of which something can be learnt
    """

    def __init__(self, path: Path) -> None:
        self.path, self.ties = path, path.with_name(f"{path.stem}.ties.jsonl")
        self._known: set[str] = set()
        self.count = 0
        for file in (self.path, self.ties):
            if file.is_dir():
                raise UsageError(f"{file} is a folder: name a file with -o")
            if file.is_file():
                for record in read_json_lines(file, skip_broken=True):
                    self._known.add(str(record.get("id")))
                    self.count += file == self.path

    def __contains__(self, key: object) -> bool:
        return key in self._known

    def add(self, comparison: Comparison, chosen: str) -> None:
        """chosen: "left", "right", "tie" or "skip"."""
        left = comparison.left
        record: dict[str, Any] = {"id": comparison.key, "prompt": comparison.messages}
        if comparison.makers is not None:
            record["models"] = list(comparison.makers)
        if chosen in ("left", "right"):
            better = left if chosen == "left" else 1 - left
            record |= {"responses": list(comparison.answers), "ranks": [better, 1 - better]}
            append_json(self.path, record)
            self.count += 1
        else:
            record |= {"responses": list(comparison.answers), "verdict": chosen}
            append_json(self.ties, record)
        self._known.add(comparison.key)
