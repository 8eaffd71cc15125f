"""Messages from records of all common shapes (trivium.data.conversation lists them).

What is wrong with a record is one line that names the field or the message.
"""

import json
import re
from typing import Any

from trivium.data.corpus import whole
from trivium.errors import UsageError

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
# ShareGPT's, and those of other collections.
OTHER_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "function_call": "assistant",
}
PROMPTS = ("prompt", "question", "query")
COMPLETIONS = ("completion", "response", "answer", "output")
_MARKED = re.compile(r"\n\n(Human|Assistant):[ \n]?")
_LONGEST_NAME = 40
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def shape_of(record: Any) -> str:
    """messages, sharegpt, alpaca, prompt, pair, ranking or turns."""
    if not isinstance(record, dict):
        raise UsageError(f"expected a JSON object, not {_kind(record)}")
    if "chosen" in record and "rejected" in record:
        return "pair"
    if "responses" in record:
        return "ranking"
    if "messages" in record:
        return "messages"
    if "conversations" in record or "conversation" in record:
        return "sharegpt"
    if "instruction" in record and _first(record, COMPLETIONS):
        return "alpaca"
    if isinstance(record.get("label"), bool):
        raise UsageError(
            "a single reply with a 'label' of true or false: give pairs ('chosen', 'rejected') or "
            "conversations to learn"
        )
    if _first(record, PROMPTS) and _first(record, COMPLETIONS):
        return "prompt"
    if isinstance(record.get("text"), str) and _MARKED.match(record["text"]):
        return "turns"
    given = ", ".join(repr(str(name)[:_LONGEST_NAME]) for name in list(record)[:12])
    raise UsageError(
        f"no conversation: it has {given or 'no fields'}; expected 'messages', 'conversations', "
        "'instruction' and 'output', or 'prompt' and 'completion'"
    )


def messages_of(record: Message, shape: str, field: str = "messages") -> list[Message]:
    """The messages of a record of a shape that is no preference."""
    if shape == "messages":
        messages = [_message(m, i) for i, m in enumerate(listed(record[field], field), 1)]
        if not messages:
            raise UsageError(f"{field!r} is empty")
        return messages
    if shape == "sharegpt":
        field = "conversations" if "conversations" in record else "conversation"
        return _system(record) + messages_of(record, "messages", field)
    if shape == "turns":
        return turns_of(record["text"])
    if shape == "alpaca":
        return _alpaca(record)
    asked, replied = _first(record, PROMPTS), _first(record, COMPLETIONS)
    assert asked is not None and replied is not None, "of shape prompt"
    messages = _system(record)
    for name, role in ((asked, "user"), (replied, "assistant")):
        value = record[name]
        if isinstance(value, list):
            messages += messages_of(record, "messages", name)
        else:
            messages.append({"role": role, "content": said(value, name)})
    return messages


def tools_of(record: Message) -> list[dict[str, Any]] | None:
    """The tools of a record, which some collections keep as a JSON text."""
    tools = record.get("tools") or record.get("functions")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise UsageError("'tools' is a text that is no JSON") from None
    if not tools:
        return None
    tools = listed(tools, "tools")
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UsageError("a tool must be an object with a 'name', or a 'function' that has one")
    return tools


def turns_of(text: str) -> list[Message]:
    """The messages of a text with turns marked as in HH-RLHF; none if it does not begin so."""
    if not _MARKED.match(text):
        return []
    _, *pieces = _MARKED.split(text)
    names = {"Human": "user", "Assistant": "assistant"}
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return [{"role": names[name], "content": whole(words)} for name, words in turns]


def said(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name!r} must be a text, not {_kind(value)}")
    return whole(value)


def listed(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{name!r} must be a list, not {_kind(value)}")
    return value


def _message(given: Any, number: int) -> Message:
    """A message as OpenAI's, whatever its fields are called."""
    what = f"message {number}"
    if not isinstance(given, dict):
        raise UsageError(f"{what} must be an object, not {_kind(given)}")
    name = given.get("role", given.get("from"))
    if name is None:
        raise UsageError(f"{what} has no role")
    known = isinstance(name, str) and (name if name in ROLES else OTHER_ROLES.get(name.lower()))
    if not known:
        roles = ", ".join(ROLES)
        raise UsageError(f"{what} has an unknown role {str(name)[:40]!r} (known: {roles})")
    rest = {k: v for k, v in given.items() if k not in ("role", "from", "value") and v is not None}
    message = {**rest, "role": known}
    content = given.get("content", given.get("value"))
    calls = message.get("tool_calls")
    if name == "function_call":
        message["tool_calls"], content = _called(said(content, what), what), None
    elif calls is not None:
        _check_calls(calls, what)
    if content is None and not message.get("tool_calls"):
        raise UsageError(f"{what} ({known}) has no content")
    message["content"] = "" if content is None else _content(content, what)
    if message.get("weight", 1) not in (0, 1):
        raise UsageError(f"{what}: 'weight' must be 0 or 1")
    return message


def _content(content: Any, what: str) -> Any:
    if isinstance(content, str):
        return whole(content)
    if not isinstance(content, list):
        raise UsageError(f"{what}: the content must be a text, not {_kind(content)}")
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise UsageError(f"{what} holds a part that is no text: only text can be read here")
    return content


def _check_calls(calls: Any, what: str) -> None:
    for call in listed(calls, f"{what}, tool_calls"):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UsageError(f"{what}: a tool call needs a function with a 'name'")


def _called(text: str, what: str) -> list[Message]:
    """The calls of a `function_call`, whose text is the JSON of one, or of a list."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{what}: the function call is no JSON") from None
    calls = [
        {"type": "function", "function": c} for c in (value if isinstance(value, list) else [value])
    ]
    _check_calls(calls, what)
    return calls


def _alpaca(record: Message) -> list[Message]:
    messages = _system(record)
    for i, turn in enumerate(listed(record.get("history") or [], "history"), 1):
        if not isinstance(turn, list) or len(turn) != 2:
            raise UsageError(f"'history': entry {i} must be a pair of request and reply")
        messages.append({"role": "user", "content": said(turn[0], "history")})
        messages.append({"role": "assistant", "content": said(turn[1], "history")})
    request = said(record["instruction"], "instruction")
    for name in ("input", "context"):
        if record.get(name):
            request = f"{request}\n\n{said(record[name], name)}"
    name = _first(record, COMPLETIONS) or ""
    reply = said(record[name], name)
    return [
        *messages,
        {"role": "user", "content": request},
        {"role": "assistant", "content": reply},
    ]


def _system(record: Message) -> list[Message]:
    system = record.get("system")
    return [{"role": "system", "content": said(system, "system")}] if system else []


def _first(record: Message, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if record.get(name) is not None), None)


def _kind(value: Any) -> str:
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
    }
    kinds |= {float: "a number", type(None): "null"}
    return kinds[type(value)]
