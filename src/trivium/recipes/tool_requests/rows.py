"""Conversations as packed rows of tokens, of which those of the assistant are learnt."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trivium.data import IGNORE
from trivium.language.chat_template import ChatTemplate
from trivium.language.tokenizer import Tokenizer
from trivium.recipes.tool_requests.dialogues import Dialogue

WAITING = 64  # conversations, of which the largest that fits goes into a row next


def learnt(ids: list[int], tokenizer: Tokenizer, weights: Sequence[int]) -> list[bool]:
    """Which tokens of a ChatML conversation the assistant says, with the end of its turns, where
    the turn's weight is not 0."""
    start, end = (tokenizer.control_tokens[t] for t in ("<|im_start|>", "<|im_end|>"))
    header = [start, *tokenizer.encode("assistant\n")]
    marks, first, turn = [False] * len(ids), None, -1
    for i, token in enumerate(ids):
        if first is not None and i >= first:
            marks[i] = weights[turn] > 0
        if token == end:
            first = None
        if token == start and ids[i : i + len(header)] == header:
            first, turn = i + len(header), turn + 1
    return marks


def encoded(
    dialogue: Dialogue, template: ChatTemplate, tokenizer: Tokenizer
) -> tuple[list[int], list[int]]:
    """Tokens, and what is to be predicted at each (IGNORE: nothing)."""
    ids = template.encode(tokenizer, dialogue.messages, dialogue.tools or None, False)
    while ids[-1] != tokenizer.control_tokens["<|im_end|>"]:
        ids.pop()  # the line's end behind the last turn
    if not dialogue.whole:
        ids.pop()
    said = [m.get("weight", 1) for m in dialogue.messages if m["role"] == "assistant"]
    marks = learnt(ids, tokenizer, said)
    targets = [t if m else IGNORE for t, m in zip(ids[1:], marks[1:], strict=True)]
    return ids, [*targets, IGNORE]


def packed(
    dialogues: Iterable[Dialogue], template: ChatTemplate, tokenizer: Tokenizer, length: int
) -> Iterator[dict[str, Tensor]]:
    """Rows (1, length) of whole conversations: ids, targets, segments. Too long ones are left
    out."""
    source = (encoded(dialogue, template, tokenizer) for dialogue in dialogues)
    waiting: list[tuple[list[int], list[int]]] = []
    row: list[tuple[list[int], list[int]]] = []
    while True:
        while len(waiting) < WAITING:
            some = next(source)
            waiting += [some] if len(some[0]) <= length else []
        room = length - sum(len(ids) for ids, _ in row)
        fitting = [i for i, (ids, _) in enumerate(waiting) if len(ids) <= room]
        if fitting and (not row or len(row) < 2):
            row.append(waiting.pop(fitting[0]))  # in their order, but for the last
        elif fitting:
            row.append(waiting.pop(max(fitting, key=lambda i: len(waiting[i][0]))))
        else:
            yield _row(row, length)
            row = []


def _row(parts: list[tuple[list[int], list[int]]], length: int) -> dict[str, Tensor]:
    ids = torch.zeros(1, length, dtype=torch.long)
    targets, segments = torch.full_like(ids, IGNORE), torch.full_like(ids, -1)
    at = 0
    for number, (tokens, wanted) in enumerate(parts):
        place = slice(at, at + len(tokens))
        ids[0, place], targets[0, place] = torch.tensor(tokens), torch.tensor(wanted)
        segments[0, place] = number
        at += len(tokens)
    # Rows end where their last conversation does.
    return {"ids": ids[:, :at], "targets": targets[:, :at], "segments": segments[:, :at]}


class Rows:
    """Rows that can be read from any place on: batches for `trivium.train.train`."""

    def __init__(self, rows: Iterable[dict[str, Tensor]]) -> None:
        self._rows = list(rows)
        self._next = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while self._next < len(self._rows):
            self._next += 1
            yield self._rows[self._next - 1]

    def all(self) -> list[dict[str, Tensor]]:
        return self._rows

    def state(self) -> dict[str, int]:
        return {"next": self._next}

    def load(self, state: Mapping[str, Any]) -> None:
        self._next = int(state["next"])

    def counts(self) -> tuple[int, int]:
        """Tokens, and how many of them are learnt."""
        tokens = sum(row["ids"].numel() for row in self._rows)
        return tokens, sum(int((row["targets"] != IGNORE).sum()) for row in self._rows)

    @property
    def hash(self) -> str:
        whole = hashlib.sha256()
        for row in self._rows:
            whole.update(row["ids"].numpy().tobytes())
        return f"sha256:{whole.hexdigest()}"
