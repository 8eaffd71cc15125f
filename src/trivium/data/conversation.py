"""Conversations and preferences, in the shapes that people keep them in.

    for messages, tools in conversations("chats.jsonl"): ...
    for prompt, responses, ranks, tools in preferences("pairs.jsonl"): ...

Each record tells its shape by its fields, so that a source may mix them:

    messages        {"messages": [{"role": "user", "content": "Hi"}, …], "tools": […]}
    ShareGPT        {"conversations": [{"from": "human", "value": "Hi"}, …], "system": "…"}
    Alpaca          {"instruction": "…", "input": "…", "output": "…", "history": [["…", "…"], …]};
                    also context and response
    prompt          {"prompt": "…" or messages, "completion": "…" or messages}; also question or
                    query, and answer, response or output
    pair            {"prompt": …, "chosen": …, "rejected": …}, each a text or messages; or without
                    prompt, when both are whole conversations: messages, or a text with turns marked
                    by "\\n\\nHuman: " and "\\n\\nAssistant: "
    ranking         {"prompt": …, "responses": [a, b, c], "ranking": [1, 0, 2]}: b is best, then a;
                    or "ranks": [1, 0, 2], the place of each (equal ones are ties); or "scores":
                    [0.3, 0.9, -1], the more the better

Messages are OpenAI's: roles, text (or parts of text), tool_calls, tool_call_id, name. A `weight` of
0 says that an assistant's message is not to be learnt.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from trivium.data.corpus import Corpus, Documents, blocks_of, documents, whole
from trivium.data.held import Held
from trivium.data.records import (
    Message,
    listed,
    messages_of,
    said,
    shape_of,
    tools_of,
    turns_of,
)
from trivium.data.textfiles import Blocks
from trivium.errors import UsageError

Record = dict[str, Any]
Kind = TypeVar("Kind", bound="Conversations | Preferences")


class Conversation(NamedTuple):
    """Messages with at least one of the assistant, and the tools that it was offered."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


class Preference(NamedTuple):
    """A prompt and replies to it, the best first. `ranks` are their places from 0 on; equal ones
    are ties."""

    prompt: list[Message]
    responses: list[list[Message]]
    ranks: list[int]
    tools: list[dict[str, Any]] | None = None


class Conversations(Corpus[Conversation]):
    """See `conversations`. `shapes` counts the records read, by their shape."""

    kind = "conversations"

    def __init__(self, name: str, blocks: Blocks | Held, **more: Any) -> None:
        super().__init__(name, blocks, **more)
        self.shapes: Counter[str] = Counter()

    def parse(self, record: Any) -> Conversation:
        shape = shape_of(record)
        if shape in ("pair", "ranking"):
            raise UsageError("a preference, not a conversation: there are several replies")
        messages = messages_of(record, shape)
        if not any(message["role"] == "assistant" for message in messages):
            raise UsageError("no turn of the assistant: nothing can be learnt from it")
        tools = tools_of(record)
        self.shapes[shape] += 1
        return Conversation(messages, tools)


class Preferences(Corpus[Preference]):
    """See `preferences`. `shapes` counts the records read, by their shape."""

    kind = "preferences"

    def __init__(self, name: str, blocks: Blocks | Held, **more: Any) -> None:
        super().__init__(name, blocks, **more)
        self.shapes: Counter[str] = Counter()

    def parse(self, record: Any) -> Preference:
        shape = shape_of(record)
        if shape not in ("pair", "ranking"):
            raise UsageError("no preference: it needs 'chosen' and 'rejected', or 'responses'")
        prompt, responses, ranks = _pair(record) if shape == "pair" else _ranking(record)
        for response in responses:
            if not any(message["role"] == "assistant" for message in response):
                raise UsageError("a reply has no turn of the assistant")
        if not prompt:
            raise UsageError("no prompt: the replies have nothing in common that they answer")
        if ranks[0] == ranks[-1]:
            raise UsageError("all replies are ranked equal: nothing can be learnt from it")
        tools = tools_of(record)
        self.shapes[shape] += 1
        return Preference(prompt, responses, ranks, tools)


def conversations(
    source: str | Path | Sequence[Mapping[str, Any]],
    *,
    skip_broken: bool = False,
    name: str = "the records given",
) -> Conversations:
    """The conversations of a file, a folder, a glob or hf:NAME; or of records in memory, which
    messages call `name`.

    skip_broken: leave out records that cannot be read, and count them in `.broken`

    Raises NotFound and UsageError, also while reading: the message names file and line.
    """
    return _opened(Conversations, source, skip_broken, name)


def preferences(
    source: str | Path | Sequence[Mapping[str, Any]],
    *,
    skip_broken: bool = False,
    name: str = "the records given",
) -> Preferences:
    """The preferences of a source: see `conversations`."""
    return _opened(Preferences, source, skip_broken, name)


def opened(
    source: str | Path | None, kind: str | None = None, *, skip_broken: bool = False
) -> Documents | Conversations | Preferences:
    """A source of any kind: text, conversations or preferences. None: as its first record is."""
    if source is None:
        return documents(None)
    kind = kind or _kind_of(str(source))
    if kind == "text":
        return documents(source, skip_broken=skip_broken)
    made = conversations if kind == "conversations" else preferences
    return made(source, skip_broken=skip_broken)


def _kind_of(source: str) -> str:
    _, blocks, _ = blocks_of(source)
    for number in range(len(blocks)):
        if not blocks.place(number)[0].records:
            continue
        for _, line in blocks.lines(number):
            try:
                shape = shape_of(json.loads(line))
            except (ValueError, RecursionError, UsageError):
                return "text"
            return "preferences" if shape in ("pair", "ranking") else "conversations"
    return "text"


def _opened(
    kind: type[Kind], source: str | Path | Sequence[Mapping[str, Any]], skip: bool, name: str
) -> Kind:
    if isinstance(source, str | Path):
        name, blocks, note = blocks_of(str(source), records=True)
        return kind(name, blocks, skip_broken=skip, note=note)
    if not source:
        raise UsageError(f"{name}: no record among them")
    return kind(name, Held(name, source), skip_broken=skip)


def _pair(record: Record) -> tuple[list[Message], list[list[Message]], list[int]]:
    if not isinstance(record.get("label", ""), str):
        raise UsageError("'label' beside 'chosen' and 'rejected': which one is the better?")
    both = [_reply(record[name], name) for name in ("chosen", "rejected")]
    prompt = _prompt(record)
    if all(conversation for _, conversation in both):
        shared = _shared([messages for messages, _ in both])
        if prompt and both[0][0][: len(prompt)] == prompt == both[1][0][: len(prompt)]:
            shared = prompt
        elif prompt and not any(m["role"] == "user" for reply, _ in both for m in reply):
            return prompt, [messages for messages, _ in both], [0, 1]
        return shared, [messages[len(shared) :] for messages, _ in both], [0, 1]
    return prompt, [messages for messages, _ in both], [0, 1]


def _ranking(record: Record) -> tuple[list[Message], list[list[Message]], list[int]]:
    replies = [_reply(reply, "responses")[0] for reply in listed(record["responses"], "responses")]
    count = len(replies)
    if count < 2:
        raise UsageError("'responses' holds fewer than two replies: nothing is compared")
    if "ranking" in record:
        best_first = _numbers(record["ranking"], "ranking", count)
        if sorted(best_first) != list(range(count)):
            raise UsageError(f"'ranking' must name each of the replies 0 to {count - 1} once")
        ranks = [best_first.index(i) for i in range(count)]
    elif "ranks" in record or "scores" in record:
        name, sign = ("ranks", 1) if "ranks" in record else ("scores", -1)
        values = [sign * value for value in _numbers(record[name], name, count)]
        ranks = [sum(other < value for other in values) for value in values]
    else:
        raise UsageError("'responses' without 'ranking', 'ranks' or 'scores': which is the best?")
    order = sorted(range(count), key=ranks.__getitem__)
    return _prompt(record), [replies[i] for i in order], [ranks[i] for i in order]


def _prompt(record: Record) -> list[Message]:
    """The messages of a prompt; none if there is no prompt."""
    system = record.get("system")
    head = [{"role": "system", "content": said(system, "system")}] if system else []
    prompt = record.get("prompt")
    if isinstance(prompt, str) and prompt:
        return head + (turns_of(prompt) or [{"role": "user", "content": whole(prompt)}])
    return head + (messages_of(record, "messages", "prompt") if prompt else [])


def _reply(value: Any, name: str) -> tuple[list[Message], bool]:
    """The messages of a reply, and whether they may be a whole conversation."""
    if isinstance(value, str):
        turns = turns_of(value)
        return turns or [{"role": "assistant", "content": said(value, name)}], bool(turns)
    if isinstance(value, dict):
        value = [value]
    messages = messages_of({name: value}, "messages", name)
    return messages, True


def _shared(replies: Sequence[Sequence[Message]]) -> list[Message]:
    """What conversations begin with alike, up to where the assistant speaks."""
    first, *others = replies
    count = 0
    while all(count < len(r) and r[count] == first[count] for r in (first, *others)):
        count += 1
    while count and first[count - 1]["role"] == "assistant":
        count -= 1
    return list(first[:count])


def _numbers(value: Any, name: str, count: int) -> list[Any]:
    numbers = listed(value, name)
    if len(numbers) != count or not all(type(number) in (int, float) for number in numbers):
        raise UsageError(f"{name!r} must hold {count} numbers, one for each reply")
    return numbers
