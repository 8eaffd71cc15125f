"""Beam search: the continuations of a prompt that are likely as a whole (Lowerre 1976).

Of all beams' continuations by one token, the K likeliest that go on are the beams of the next step;
those among the K likeliest that end are hypotheses, of which the K best are kept. Their score is

    log P(tokens | prompt) / (number of tokens) ^ length_penalty

with the end token among the tokens. What counts, and when the search stops, is as in transformers'
`generate(num_beams=K)`; the tests compare the two. The beams are read in one step together, each in
a cache of its own; a beam that takes over from another copies only what they do not share.

K beams, T tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from trivium.errors import TriviumError, UsageError
from trivium.language.constrain import Constraint, Grammar
from trivium.language.sampling import log_probabilities
from trivium.language.slots import Slot

if TYPE_CHECKING:
    from trivium.language.engine import Engine

PENALTY = 10  # no power of a length that overflows
EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True)
class Hypothesis:
    """A continuation that came to its end. `reason` is that of `End`."""

    ids: tuple[int, ...]  # with the end token, if it has one
    text: str
    score: float
    reason: Literal["stop", "length"]


@dataclass
class _Beam:
    """A continuation that goes on. `logits` are those after its last token."""

    slot: Slot
    logits: Tensor
    ids: tuple[int, ...] = ()
    total: float = 0.0  # log P
    constraint: Constraint | None = None

    def log_probabilities(self) -> Tensor:
        """log P of the continuation by each token, float32 (V,)."""
        values = log_probabilities(self.logits)
        if self.constraint is not None:
            values = self.constraint.mask(values)
        return values + self.total


@dataclass(frozen=True)
class _Candidate:
    """A beam and a token behind it."""

    beam: _Beam
    token: int
    total: float

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.beam.ids, self.token)


@torch.inference_mode()
def beam_search(
    engine: "Engine",
    prompt: Sequence[int],
    *,
    beams: int,
    max_tokens: int,
    count: int = 1,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    grammar: Grammar | None = None,
) -> list[Hypothesis]:
    """The `count` best continuations, the best one first.

    length_penalty: above 0 favours long ones (scores are negative), below 0 short ones
    early_stopping: True stops once there are as many hypotheses as beams; False when the best beam,
        at its present length, is no better than the worst hypothesis; "never" when it cannot become
        better at any length. One beam is greedy decoding, and stops at the first end.

    With a grammar there may be fewer than `count`. Raises UsageError for arguments that do not fit
    one another, and ContextOverflow.
    """
    _check(beams, max_tokens, count, length_penalty, early_stopping)
    prompt = list(prompt)
    engine.room(prompt, max_tokens)
    constraint = None if grammar is None else engine.constrainer.start(grammar)
    slot, _ = engine.slots.acquire(prompt)
    try:
        first = _Beam(slot, engine.read(slot, prompt), constraint=constraint)
        search = _Search(engine, beams, max_tokens, length_penalty, early_stopping)
        return search.run(first)[:count]
    finally:
        engine.slots.release(slot)


def _check(
    beams: int, max_tokens: int, count: int, length_penalty: float, early_stopping: EarlyStopping
) -> None:
    for name, value in (("beams", beams), ("max_tokens", max_tokens), ("count", count)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{name} must be a whole number of at least 1, not {value!r}")
    if count > beams:
        raise UsageError(f"{beams} beams give at most {beams} texts, not {count}: ask for fewer")
    if not isinstance(length_penalty, int | float) or not abs(length_penalty) <= PENALTY:
        bounds = f"from -{PENALTY} to {PENALTY}"
        raise UsageError(f"length_penalty must be a number {bounds}, not {length_penalty!r}")
    if early_stopping not in (True, False, "never"):
        raise UsageError(f'early_stopping must be true, false or "never", not {early_stopping!r}')


@dataclass
class _Search:
    engine: "Engine"
    width: int  # beams
    max_tokens: int
    length_penalty: float
    early_stopping: EarlyStopping
    found: list[Hypothesis] = field(default_factory=list)  # best first

    def run(self, first: _Beam) -> list[Hypothesis]:
        beams = [first]
        for length in range(1, self.max_tokens + 1):
            candidates = self._candidates(beams)
            self._keep([c for c in candidates[: self.width] if self._reason(c)])
            going = [c for c in candidates if self._reason(c) is None][: self.width]
            if not going or self._settled(going[0].total, length):
                break
            beams = self._grown(beams, going)
        if not self.found:
            raise TriviumError("beam search found no text that the grammar allows: try more beams")
        return self.found

    def _candidates(self, beams: Sequence[_Beam]) -> list[_Candidate]:
        """The likeliest continuations, best first: so many that enough go on if all ends are
        among them."""
        totals = torch.stack([beam.log_probabilities() for beam in beams])
        wanted = max(2, 1 + len(self.engine.tokenizer.stop_ids)) * self.width
        best = totals.flatten().topk(min(wanted, totals.numel()))
        vocabulary = totals.shape[1]
        return [
            _Candidate(beams[index // vocabulary], index % vocabulary, total)
            for total, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            if total > -math.inf
        ]

    def _reason(self, candidate: _Candidate) -> Literal["stop", "length"] | None:
        """Why it ends here; None if it goes on."""
        if candidate.token in self.engine.tokenizer.stop_ids:
            return "stop"
        return "length" if len(candidate.beam.ids) + 1 == self.max_tokens else None

    def _keep(self, ended: Sequence[_Candidate]) -> None:
        """Take in hypotheses; the best `width` of all stay."""
        for candidate in ended:
            ids, reason = candidate.ids, self._reason(candidate)
            assert reason is not None
            score = candidate.total / len(ids) ** self.length_penalty
            text = self.engine.tokenizer.decode(ids[:-1] if reason == "stop" else ids)
            self.found.append(Hypothesis(ids, text, score, reason))
        self.found.sort(key=lambda hypothesis: -hypothesis.score)
        del self.found[self.width :]

    def _settled(self, best: float, length: int) -> bool:
        """Whether to stop, as the best beam has log P `best` after `length` tokens."""
        if len(self.found) < self.width:
            return False
        if self.early_stopping is True or self.width == 1:  # one beam is greedy decoding
            return True
        if self.early_stopping == "never" and self.length_penalty > 0:
            length = self.max_tokens
        return best / length**self.length_penalty <= self.found[-1].score

    def _grown(self, beams: Sequence[_Beam], going: Sequence[_Candidate]) -> list[_Beam]:
        """The beams of the next step. Each slot stays with the first beam that goes on from it;
        the others take slots that nobody goes on from, or new ones."""
        parents = {id(candidate.beam) for candidate in going}
        free = [beam.slot for beam in beams if id(beam) not in parents]
        grown = []
        for candidate in going:
            parent = candidate.beam
            slot, constraint = parent.slot, parent.constraint
            if id(parent) in parents:
                parents.remove(id(parent))
            else:
                slot = free.pop() if free else Slot()
                slot.follow(parent.slot, len(parent.slot.ids))
            if constraint is not None:
                constraint = constraint.fork()
                constraint.accept(candidate.token)
            grown.append(_Beam(slot, parent.logits, candidate.ids, candidate.total, constraint))
        rows = self.engine.extend([b.slot for b in grown], [[b.ids[-1]] for b in grown])
        for beam, logits in zip(grown, rows, strict=True):
            beam.logits = logits[-1]
        return grown
