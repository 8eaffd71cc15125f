"""One generation: what is asked for, what comes out, and the request on its way between them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from trivium.language.constrain import Constraint, Grammar
from trivium.language.sampling import (
    Sampling,
    biased,
    log_probabilities,
    make_generator,
    next_token,
)
from trivium.language.slots import Slot
from trivium.language.speculative import PromptLookup
from trivium.language.tokenizer import StopStrings, StreamDecoder
from trivium.nn.threads import one_thread

if TYPE_CHECKING:
    from trivium.language.engine import Engine


@dataclass(frozen=True)
class Request:
    """What to generate. `max_tokens` None: up to the end of the context."""

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    grammar: Grammar | None = None  # see trivium.language.constrain
    top_logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added before anything else
    speculate: bool = True  # drafts change the time it takes, and nothing else


@dataclass(frozen=True)
class Token:
    """One step of generation. `text` is what became certain with it, possibly nothing.

    `logprob` and `top` (pairs of id and log-probability) are given when the request asks for them;
    they are those of the model, before temperature and penalties.
    """

    id: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class End:
    """The end of generation: "stop" (end token, stop string, constraint satisfied) or "length"."""

    reason: Literal["stop", "length"]
    text: str  # what the decoder still held back
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Run:
    """One request on its way: its slot, its random numbers, and what it has made so far.

    Read the prompt until `read_prompt` says that it is done; then `choose` and let the engine
    `advance`, in turn, until `ended`. `close` gives the slot back.

    To advance, the engine reads the tokens that are `pending`: the one chosen last, and perhaps a
    draft of those behind it. `choose` then draws a token from the logits after the first, as it
    would without a draft, and goes on for as long as the draft has the same tokens: all logits that
    are used come from the very text that was chosen.

    A run is made in the thread that asks, with what may take long: the automata of its stop strings
    and its grammar. Whoever owns the engine lets it `join`, at the latest when it is
    read. `constraint`: that of the request's grammar, if it was started already.
    """

    def __init__(
        self, engine: "Engine", request: Request, constraint: Constraint | None = None
    ) -> None:
        self._engine, self._request = engine, request
        self._prompt = list(request.prompt)
        self._room = engine.room(self._prompt, request.max_tokens)
        self._decoder = StreamDecoder(engine.tokenizer)
        self._stops = StopStrings(request.stop)
        self._random = make_generator(request.sampling.seed)
        if constraint is None and request.grammar is not None:
            constraint = engine.constrainer.start(request.grammar)
        self._constraint = constraint
        self.made: list[int] = []
        self.logits: Tensor | None = None  # (T, V), after each of the tokens read last
        self.ended = False
        self._draft: list[int] = []
        self._lookup: PromptLookup | None = None
        self._slot: Slot | None = None
        self._cached = 0

    def join(self) -> None:
        """Take a place in the engine."""
        if self._slot is None:
            self._slot, self._cached = self._engine.slots.acquire(self._prompt)

    @property
    def slot(self) -> Slot:
        self.join()
        assert self._slot is not None
        return self._slot

    @property
    def unread(self) -> int:
        """How many tokens of the prompt are still to be read."""
        return len(self._prompt) - len(self.slot.ids)

    @property
    def share(self) -> float:
        """How much of a whole chunk is to be read next, up to 1."""
        return min(1.0, self.unread / self._engine.chunk_behind(len(self.slot.ids)))

    def read_prompt(self) -> bool:
        """Compute the next chunk of the prompt; True when all of it has been read."""
        if self.logits is None:
            slot = self.slot  # which counts what it holds already
            self._cached += self._engine.slots.catch_up(slot, self._prompt)
            logits = self._engine.read_chunk(slot, self._prompt)
            self.logits = None if logits is None else logits[None]
        return self.logits is not None

    def pending(self, drafts: int) -> list[int]:
        """The tokens to be read next: the one chosen last, and at most `drafts` behind it."""
        self._forget_draft()
        # Behind the draft one more token can be drawn.
        drafts = min(drafts, self._room - len(self.made) - 1)
        self._draft = self._likely(drafts) if drafts > 0 and self._request.speculate else []
        return [self.made[-1], *self._draft]

    def choose(self) -> Iterator[Token | End]:
        """Draw the next token, and those behind it that were drafted rightly; an End follows the
        last token of all."""
        assert self.logits is not None
        for logits, drafted in zip(self.logits, [*self._draft, None], strict=True):
            with one_thread():
                token = self._draw(logits)
            self.made.append(token.id)
            if self._lookup is not None:
                self._lookup.push(token.id)
            yield from self._told(token)
            if self.ended or token.id != drafted:
                return

    def close(self) -> None:
        """Give the slot back. May be called twice."""
        self.ended = True
        if self._slot is not None and self._slot.busy:
            self._forget_draft()
            self._engine.slots.release(self.slot)

    def _forget_draft(self) -> None:
        """Take the tokens out of the slot that were drafted and then not drawn."""
        read = len(self._prompt) + len(self.made) - 1
        if self.made and len(self.slot.ids) > read:
            self.slot.truncate(read)

    def _likely(self, most: int) -> list[int]:
        """Up to `most` tokens that may follow: those that must, else those looked up."""
        if self._constraint is not None and (forced := self._constraint.forced()):
            return forced[:most]
        if self._lookup is None:
            self._lookup = PromptLookup([*self._prompt, *self.made])
        draft = self._lookup.draft(most)
        return draft if self._constraint is None else draft[: self._constraint.allowed(draft)]

    def _told(self, token: Token) -> Iterator[Token | End]:
        """The token with the text it makes certain, and the End if it is the last one."""
        if token.id in self._engine.tokenizer.stop_ids:
            yield self._end("stop")
            return
        text, stopped = self._stops.push(self._decoder.push(token.id))
        yield replace(token, text=text)
        if stopped:
            yield self._end("stop", flush=False)
        elif self._constraint is not None and self._constraint.finished:
            yield self._end("stop")
        elif len(self.made) == self._room:
            yield self._end("length")

    def _draw(self, logits: Tensor) -> Token:
        """Draw from logits (V,)."""
        request = self._request
        allowed = biased(logits, request.logit_bias)
        if self._constraint is not None:
            allowed = self._constraint.mask(allowed.clone())
        chosen = next_token(
            allowed, request.sampling, self.made, self._random, prompt=request.prompt
        )
        if self._constraint is not None:
            self._constraint.accept(chosen)
        if request.top_logprobs is None:
            return Token(chosen, "")
        logprobs = log_probabilities(logits)
        top = torch.topk(logprobs, min(request.top_logprobs, len(logprobs)))
        pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        return Token(chosen, "", float(logprobs[chosen]), pairs)

    def _end(self, reason: Literal["stop", "length"], *, flush: bool = True) -> End:
        self.ended = True
        rest = ""
        if flush:
            rest, _ = self._stops.push(self._decoder.flush())
            rest += self._stops.flush()
        return End(reason, rest, len(self._prompt), len(self.made), self._cached)
