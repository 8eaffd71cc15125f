"""Slots: the caches of the last prompts, so that what two prompts share is computed once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from trivium.nn.attention import KVCache

IDLE = 4  # slots kept while nobody uses them


@dataclass(eq=False)
class Slot:
    """A cache, and the tokens it holds. `busy`: somebody is writing to it."""

    ids: list[int] = field(default_factory=list)
    cache: KVCache = field(default_factory=KVCache)
    last_used: float = 0.0
    busy: bool = False

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on, in the cache whatever `ids` say."""
        del self.ids[length:]  # first: a cache that holds more than `ids` does no harm
        self.cache.truncate(length)

    @torch.inference_mode()
    def follow(self, other: "Slot", length: int) -> None:
        """Hold the first `length` tokens of `other`. Only what differs is copied."""
        same = min(common_prefix(self.ids, other.ids), length)
        self.truncate(same)
        self.cache.follow(other.cache, length)
        self.ids += other.ids[same:length]


class Slots:
    def __init__(self) -> None:
        self._slots: list[Slot] = []

    @property
    def tokens(self) -> int:
        """Tokens whose keys and values are kept. Any thread may ask."""
        return sum(len(slot.ids) for slot in list(self._slots))

    def acquire(self, prompt: Sequence[int]) -> tuple[Slot, int]:
        """A slot of one's own to compute `prompt` in, and how many of its tokens it holds already.

        At least one token is left to compute, because its logits are wanted.
        """
        best, shared = None, 0
        for slot in self._slots:
            n = min(common_prefix(slot.ids, prompt), len(prompt) - 1)
            if n > shared:
                best, shared = slot, n
        if best is None or best.busy or 2 * shared < len(best.ids):
            # Most of that slot is something else, or it is in use: copy the beginning.
            start = best.cache.copy(shared) if best is not None else KVCache()
            best = Slot(list(prompt[:shared]), start)
            self._slots.append(best)
        best.truncate(shared)
        best.busy = True
        self._touch(best)
        return best, shared

    def catch_up(self, slot: Slot, prompt: list[int]) -> int:
        """Copy what other slots have computed of `prompt` since; how many tokens that was.

        So requests that came together with the same prompt compute it once.
        """
        held = len(slot.ids)
        best, shared = slot, held
        for other in self._slots:
            if other.ids[: shared + 1] == prompt[: shared + 1]:
                n = min(common_prefix(other.ids, prompt), len(prompt) - 1)
                best, shared = (other, n) if n > shared else (best, shared)
        if best is not slot:
            slot.follow(best, shared)
        return shared - held

    def release(self, slot: Slot) -> None:
        """Keep the slot for a prompt that begins alike; forget the one used longest ago."""
        slot.busy = False
        self._touch(slot)

    def _touch(self, slot: Slot) -> None:
        slot.last_used = time.monotonic()
        idle = [slot for slot in self._slots if not slot.busy]
        for old in sorted(idle, key=lambda slot: slot.last_used)[:-IDLE]:
            self._slots.remove(old)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share from the start."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
