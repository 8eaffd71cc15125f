"""Conversations on disk: one append-only journal each, written while they happen.

`files.data_home()/conversations/ID.jsonl` begins with a header (id, time, model, system prompt,
workspace, title); then every message and every event follows with its time, as it happens: the
full trace. A line is on the disk whole or not at all, so a process that dies loses at most the
words of the last fifth of a second; what is left of its turn is read back as
`trivium.llmos.kernel.extend` has it: the user's message, the finished steps, the words said.

One process has a conversation open at a time (flock); anybody may read it.
"""

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trivium import files
from trivium.errors import NotFound, TriviumError, UsageError
from trivium.llmos.journal import Journal, event_from_record, event_to_record, record
from trivium.llmos.kernel import extend
from trivium.llmos.messages import Answer, Event, Message, TextDelta, ToolResult

VERSION = 1
HEADER = {"version", "id", "model", "system", "workspace", "title"}
PATIENCE = 0.2  # seconds that streamed words may wait for the next ones, to share their line


@dataclass
class Turn:
    """A message of the user, who else wrote something in it, and what it led to."""

    message: Message
    sources: frozenset[str] = frozenset()
    events: list[Event] = field(default_factory=list)

    @property
    def answered(self) -> bool:
        return any(isinstance(event, Answer) for event in self.events)


class Conversation:
    """A conversation that is going on; nothing is written before the first message."""

    def __init__(self, *, model: str, system: str | None, workspace: Path) -> None:
        self.id = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)
        self.path = folder() / f"{self.id}.jsonl"
        self.model, self.system, self.workspace = model, system, str(workspace)
        self.title = ""
        self.turns: list[Turn] = []
        self._journal: Journal | None = None
        self._words = ""
        self._words_since = 0.0

    @classmethod
    def open(cls, path: Path) -> "Conversation":
        """Go on with a stored conversation. Raises Refused while another process has it open."""
        journal = Journal.open(path)
        try:
            header = _header(path)
            conversation = cls(
                model=header["model"], system=header["system"], workspace=Path(header["workspace"])
            )
            conversation.id, conversation.path = header["id"], path
            conversation.title = header["title"]
            for line in files.read_json_lines(path, skip_broken=True):
                conversation._replay(line)
        except (LookupError, TypeError, AttributeError, StopIteration) as error:
            journal.close()
            raise TriviumError(f"{path} is damaged: {type(error).__name__} {error}") from error
        except BaseException:
            journal.close()
            raise
        conversation._journal = journal
        return conversation

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._journal is not None:
            try:
                self._write_words()
            finally:
                self._journal.close()
                self._journal = None

    @property
    def messages(self) -> list[Message]:
        """What a model is shown: the system prompt, and every turn as far as it came."""
        history = [Message("system", self.system)] if self.system else []
        for turn in self.turns:
            history = extend([*history, turn.message], turn.events)
        return history

    @property
    def sources(self) -> frozenset[str]:
        """Everybody but the user who wrote something in this conversation."""
        results = (e for turn in self.turns for e in turn.events if isinstance(e, ToolResult))
        return frozenset().union(
            *(turn.sources for turn in self.turns), *(result.sources for result in results)
        )

    def say(self, message: Message, *, sources: Iterable[str] = (), title: str = "") -> None:
        """Begin a turn with the user's `message`. `title` names a conversation that is new."""
        self._write_words()
        turn = Turn(message, frozenset(sources))
        line = record("message", message=message.to_json(), sources=sorted(turn.sources))
        if self._journal is None:
            self.title = _shortened(title or message.text)
            header = record(
                "conversation",
                version=VERSION,
                id=self.id,
                model=self.model,
                system=self.system,
                workspace=self.workspace,
                title=self.title,
            )
            self._journal = Journal.create(self.path, (header, line))
        else:
            self._journal.append(line)
        self.turns.append(turn)

    def record(self, event: Event) -> None:
        """Add an event of the turn that is going on."""
        assert self._journal is not None, "say something before recording events"
        self.turns[-1].events.append(event)
        if isinstance(event, TextDelta):
            self._words_since = self._words_since if self._words else time.monotonic()
            self._words += event.text
            if time.monotonic() - self._words_since >= PATIENCE:
                self._write_words()
        else:
            self._write_words()
            self._journal.append(event_to_record(event))

    def undo(self) -> Turn | None:
        """Take the last turn back, as far as the model is shown; the journal keeps it."""
        if self._journal is None or not self.turns:
            return None
        self._write_words()
        self._journal.append(record("undo"))
        return self.turns.pop()

    def change(self, *, model: str | None = None, system: str | None = None) -> None:
        """Go on with another model or system prompt ("" for none)."""
        self.model = self.model if model is None else model
        self.system = self.system if system is None else system
        if self._journal is not None:
            self._journal.append(record("change", model=self.model, system=self.system))

    def save_as(self, name: str) -> None:
        """Give the conversation a name, under which `find` finds it. Names are not moved."""
        if self._journal is None:
            raise UsageError("nothing has been said yet that could be saved")
        if not name or name.startswith(".") or "/" in name or not name.isprintable():
            raise UsageError(f"{name!r} cannot be a name: use letters, digits, - and _")
        link = folder() / "saved" / name
        with files.writing(link):
            link.parent.mkdir(exist_ok=True)
            try:
                link.symlink_to(Path("..") / self.path.name)
            except FileExistsError:
                if link.resolve() != self.path.resolve():
                    raise UsageError(f"the name {name!r} is taken: choose another") from None

    def _replay(self, line: Mapping[str, Any]) -> None:
        match line["type"]:
            case "message":
                message = Message.from_json(line["message"])
                self.turns.append(Turn(message, frozenset(line["sources"])))
            case "undo":
                self.turns.pop()
            case "change":
                self.model, self.system = line["model"], line["system"]
            case _ if self.turns:
                events = self.turns[-1].events
                event = event_from_record(line, events)
                events += [event] if event else []

    def _write_words(self) -> None:
        if self._words and self._journal is not None:
            words, self._words = self._words, ""
            self._journal.append(event_to_record(TextDelta(words)), durable=False)


@dataclass(frozen=True)
class Summary:
    """A stored conversation at a glance; `updated` in seconds since 1970."""

    id: str
    path: Path
    title: str
    model: str
    workspace: str
    updated: float


def folder() -> Path:
    return files.data_home() / "conversations"


def stored() -> list[Summary]:
    """All conversations, the latest first. Files that are not conversations are passed over."""
    found = []
    for path in folder().glob("*.jsonl"):
        try:
            header = _header(path)
            updated = path.stat().st_mtime
        except (TriviumError, OSError):
            continue
        names = (header["id"], path, header["title"], header["model"], header["workspace"])
        found.append(Summary(*names, updated))
    return sorted(found, key=lambda summary: (summary.updated, summary.id), reverse=True)


def latest(workspace: Path) -> Path:
    """The conversation that was last used in `workspace`. Raises NotFound when there is none."""
    for summary in stored():
        if summary.workspace == str(workspace):
            return summary.path
    raise NotFound(f"no conversation to continue in {workspace}: start one without -c")


def find(name: str) -> Path:
    """The conversation of that saved name, or whose id begins so."""
    link = folder() / "saved" / name
    if name and "/" not in name and link.exists():
        return link.resolve()
    found = [summary for summary in stored() if name and summary.id.startswith(name)]
    if len(found) > 1:
        ids = ", ".join(summary.id for summary in found[:5])
        raise UsageError(f"{name!r} fits {len(found)} conversations ({ids}): give more of the id")
    if not found:
        raise NotFound(f"no conversation is named {name!r}")
    return found[0].path


def _header(path: Path) -> dict[str, Any]:
    """The first record. Raises TriviumError when it does not begin a conversation."""
    header = next(files.read_json_lines(path, skip_broken=True), {})
    if header.get("type") != "conversation" or not header.keys() >= HEADER:
        raise TriviumError(f"{path} is not a conversation, or its beginning is damaged")
    if header["version"] > VERSION:
        raise TriviumError(f"{path} was written by a newer Trivium: upgrade to go on with it")
    return header


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"
