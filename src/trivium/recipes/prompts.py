"""Prompts that a model answers to learn from its rewards, as people keep them in files.

    {"prompt": "What is 3 + 4?", "answer": "7"}         also question or query
    {"prompt": [{"role": "user", "content": "…"}], "answer": "Berlin", "check": "text"}

answer   that is right, where a program can tell; not needed with a reward model
check    how: number (the last one of the answer; the default), text, or choice (a letter)
"""

from collections.abc import Callable
from typing import Any

from trivium.data.corpus import Corpus, blocks_of
from trivium.data.held import Held
from trivium.data.records import PROMPTS, messages_of, said, tools_of
from trivium.errors import UsageError
from trivium.language.alignment.rollouts import Prompt
from trivium.language.alignment.verifiable import CHECKS
from trivium.recipes.exercises import Exercise


class Prompts(Corpus[Prompt]):
    """See the module."""

    kind = "prompts"

    def parse(self, record: Any) -> Prompt:
        if not isinstance(record, dict):
            raise UsageError("expected a JSON object")
        name = next((name for name in PROMPTS if record.get(name)), None)
        if name is None:
            raise UsageError(f"no prompt: it needs one of {', '.join(map(repr, PROMPTS))}")
        value = record[name]
        if isinstance(value, list):
            messages = messages_of(record, "messages", name)
            if messages[-1]["role"] not in ("user", "tool"):
                raise UsageError(f"{name!r} must end with what the assistant is to answer")
        else:
            system = record.get("system")
            head = [{"role": "system", "content": said(system, "system")}] if system else []
            messages = [*head, {"role": "user", "content": said(value, name)}]
        answer, check = record.get("answer", ""), record.get("check", "number")
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            answer = str(answer)
        if check not in CHECKS:
            raise UsageError(f"'check' must be one of {', '.join(CHECKS)}, not {check!r}")
        answer = said(answer, "answer")
        if answer and not CHECKS[check](answer, answer):
            raise UsageError(f"the answer {answer[:40]!r} is no {check}: say how to 'check' it")
        return Prompt(messages, answer, check, tools_of(record))


def prompts(source: str) -> Prompts:
    """Those of a file, a folder, a glob or hf:NAME."""
    name, blocks, note = blocks_of(source, records=True)
    return Prompts(name, blocks, note=note)


def made(items: list[Exercise], name: str) -> Prompts:
    records = [{"prompt": i.question, "answer": i.answer, "check": i.check} for i in items]
    return Prompts(name, Held(name, records))


def encoded(
    corpus: Prompts, encode: Callable[[Prompt], list[int]]
) -> tuple[list[Prompt], list[list[int]]]:
    """All prompts and their tokens. Raises UsageError with file and line of one that does not
    fit."""
    found, ids = [], []
    for one in corpus.found():
        try:
            ids.append(encode(one.item))
        except UsageError as error:
            raise UsageError(f"{one.place}: {error}") from None
        found.append(one.item)
    return found, ids
