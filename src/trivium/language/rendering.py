"""Conversations as tokens to learn from: which of them the assistant says.

A conversation is spelled whole by the model's own chat template, and only what the model has to say
by itself carries loss: each turn of the assistant from behind its header, which the template's
generation prompt writes, through the token that ends it.

    <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎⟦Hello!<|im_end|>⟧⏎

Templates that mark the turns themselves ({% generation %}) are taken at their word. For others, a
turn is where the text changes when a message is replaced by another one. That also finds turns that
the template writes differently once others follow, such as those that lose their thoughts.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trivium.errors import UsageError
from trivium.language.chat_template import ChatTemplate, Message, Spelling
from trivium.language.tokenizer import Tokenizer

Span = tuple[int, int]
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")


def render(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    **extra: Any,
) -> tuple[list[int], list[bool]]:
    """The ids of a conversation, as template.encode gives them without a generation prompt, and
    which of them are to be learnt. A message with a `weight` of 0 is not.

    Raises UsageError where the template refuses the messages.
    """
    learnt = [m.get("role") == "assistant" and m.get("weight", 1) != 0 for m in messages]
    messages = [{k: v for k, v in message.items() if k != "weight"} for message in messages]
    spelling = Spelling(template, tokenizer, [messages, tools, extra])
    opening, closing, stand_in = spelling.spare
    marked = spelling.text(messages, tools, False, marks=(opening, closing), **extra)
    if opening in marked:
        text, spans = _unmarked(marked, opening, closing)
        spans = _chosen(spans, messages, learnt)
    else:
        text, spans = marked, []
        for i in (i for i, wanted in enumerate(learnt) if wanted):
            changed = [*messages[:i], _replaced(messages[i], stand_in), *messages[i + 1 :]]
            other = spelling.text(changed, tools, False, **extra)
            if text == other:
                raise UsageError(f"the chat template leaves out message {i + 1}, of the assistant")
            low = spans[-1][1] if spans else 0
            calls = bool(messages[i].get("tool_calls"))
            spans.append(_turn(tokenizer, template, text, other, low, calls=calls))
    ids, places = tokenizer.encode_spans(text, spelling.disguise)
    return ids, _covered(places, spans)


def _unmarked(marked: str, opening: str, closing: str) -> tuple[str, list[Span]]:
    """The text without marks, and what stood between them."""
    pieces = re.split(f"[{opening}{closing}]", marked)
    ends, at = [], 0
    for piece in pieces[:-1]:
        at += len(piece)
        ends.append(at)
    return "".join(pieces), list(zip(ends[::2], ends[1::2], strict=True))


def _chosen(spans: list[Span], messages: Sequence[Message], learnt: Sequence[bool]) -> list[Span]:
    """Those spans of the assistant's turns that are to be learnt."""
    turns = [wanted for m, wanted in zip(messages, learnt, strict=True) if m["role"] == "assistant"]
    if all(turns):
        return spans
    if len(spans) != len(turns):
        raise UsageError(
            f"the chat template marks {len(spans)} turns of the assistant where there are "
            f"{len(turns)} messages: which one has a weight of 0 cannot be told"
        )
    return [span for span, wanted in zip(spans, turns, strict=True) if wanted]


def _replaced(message: Message, stand_in: str) -> dict[str, Any]:
    """The message with another text in all its places."""
    changed = {**message, "content": stand_in}
    changed |= {name: stand_in for name in _THOUGHTS if message.get(name)}
    if calls := message.get("tool_calls"):
        changed["tool_calls"] = [_replaced_call(call, stand_in) for call in calls]
        if not message.get("content"):
            changed["content"] = message.get("content")
    return changed


def _replaced_call(call: Mapping[str, Any], stand_in: str) -> dict[str, Any]:
    if "function" in call:
        return {**call, "function": _replaced_call(call["function"], stand_in)}
    return {**call, "name": stand_in, "arguments": {stand_in: stand_in}}


def _turn(
    tokenizer: Tokenizer, template: ChatTemplate, text: str, other: str, low: int, *, calls: bool
) -> Span:
    """Where in `text`, from `low` on, the turn is in which `other` differs.

    It begins behind the generation prompt, and ends with the end token that follows what differs;
    between them, only calls have closing marks of their own.
    """
    start = _alike(text, other)
    end = len(text) - _alike(text[start:][::-1], other[start:][::-1])
    header, control = template.generation_prompt, tokenizer.control_tokens
    place = text.rfind(header, low, start) if header else -1
    if place >= 0:
        start = place + len(header)
    stops, names = tokenizer.stop_ids, ("<|end|>", template.eos_token)
    ends = [token for token, id in control.items() if id in stops or token in names]
    found = re.compile("|".join(map(re.escape, ends))).search(text, end) if ends else None
    if found:
        between = text[end : found.start()].strip()
        opener = next((token for token in control if header.startswith(token)), header.strip())
        next_turn = any(token in between for token in ([opener] if opener else control))
        if not between or (calls and not next_turn):
            end = found.end()
    return start, end


def _alike(one: str, other: str) -> int:
    """How many characters both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _covered(places: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Which tokens have a character within one of the spans.

    A token reaches from where the one before it ends: some tokenizers do not count the space that a
    token begins with.
    """
    if not places or not spans:
        return [False] * len(places)
    starts, ends = np.array(places).T
    before = np.maximum.accumulate(np.concatenate([[0], ends[:-1]]))
    starts = np.minimum(starts, before)
    ends = np.maximum(ends, starts + 1)
    learnt = np.zeros(len(places), dtype=bool)
    for start, end in spans:
        learnt |= (starts < end) & (ends > start)
    mask: list[bool] = learnt.tolist()
    return mask
