"""The engine: prefill a prompt once, then decode token by token from the cache.

`Engine` keeps the caches of the last prompts in slots. A new prompt takes over the slot with which
it shares the longest beginning and computes only what differs, so that the second turn of a
conversation, or the next request behind the same instructions, does not pay for the first again.
Cached and uncached decoding give the same logits, up to the order of summation.

T tokens, V vocabulary.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from trivium.errors import UsageError
from trivium.language.constrain import Constrainer, Constraint, Grammar
from trivium.language.native_step import NativeStep
from trivium.language.pretrained import LanguageModel
from trivium.language.sampling import Sampling, log_probabilities, make_generator, next_token
from trivium.language.slots import Slot, Slots
from trivium.language.tokenizer import StopStrings, StreamDecoder

PREFILL_CHUNK = 512  # tokens; bounds the memory of a long prompt
FEATURE_BATCH = 32  # texts


class ContextOverflow(UsageError):
    """The prompt does not fit the model's context. Nothing is ever cut silently."""


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


class Engine:
    """Generates and scores with one language model, one request at a time."""

    def __init__(self, language_model: LanguageModel) -> None:
        self.language_model = language_model
        self.model = language_model.model
        self.tokenizer = language_model.tokenizer
        self.context = self.model.config.context
        self.slots = Slots()
        self._native = NativeStep.of(self.model)

    @cached_property
    def constrainer(self) -> Constrainer:
        return Constrainer(self.tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """Tells models apart: a hash of the config and of some vectors of the embedding."""
        ids = torch.arange(0, self.model.config.vocab_size, 97, device=self.language_model.device)
        rows = self.model.embedding.rows(ids).detach().float().cpu().numpy().tobytes()
        return hashlib.sha256(repr(self.model.config).encode() + rows).hexdigest()

    # -- generation -----------------------------------------------------------------------------

    def generate(self, request: Request) -> Iterator[Token | End]:
        """Yield tokens as they are made, then one `End`.

        Raises ContextOverflow when prompt and `max_tokens` do not fit. Closing the generator stops
        the work; the tokens made so far stay cached.
        """
        run = Run(self, request)
        try:
            while not run.read_prompt():
                pass
            while True:
                yield from run.choose()
                if run.ended:
                    return
                self.advance([run])
        finally:
            run.close()

    def advance(self, runs: Sequence["Run"]) -> None:
        """One step for all of `runs`: read the token that each of them chose last."""
        logits = self.step([run.made[-1] for run in runs], [run.slot for run in runs])
        for run, row in zip(runs, logits, strict=True):
            run.logits = row

    def room(self, prompt: Sequence[int], max_tokens: int | None) -> int:
        """How many tokens may follow `prompt`. Raises ContextOverflow, or UsageError if it is
        empty."""
        if not prompt:
            raise UsageError("the prompt is empty")
        free = self.context - len(prompt)
        if free < 1 or (max_tokens is not None and max_tokens > free):
            asked = f" and {max_tokens} tokens of answer" if max_tokens is not None else ""
            raise ContextOverflow(
                f"a prompt of {len(prompt)} tokens{asked} does not fit the context of "
                f"{self.context} tokens of {self.language_model.name}: shorten the input, ask for "
                "less, or start a new conversation"
            )
        return free if max_tokens is None else max_tokens

    # -- likelihood -----------------------------------------------------------------------------

    def score(
        self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """log P of every token of each continuation, given the prompt and the tokens before it.

        The prompt is computed once; each continuation then costs its own tokens.
        """
        prompt = list(prompt)
        longest = max((len(c) for c in continuations), default=0)
        self.room(prompt, longest)
        slot, _ = self.slots.acquire(prompt)
        try:
            first = log_probabilities(self.read(slot, prompt))
            return [self._score(slot, len(prompt), first, c) for c in continuations]
        finally:
            self.slots.release(slot)

    def _score(
        self, slot: Slot, start: int, first: Tensor, continuation: Sequence[int]
    ) -> list[float]:
        if not continuation:
            raise UsageError("a continuation to be scored is empty")
        values = [float(first[continuation[0]])]
        if len(continuation) > 1:
            rest = self._forward(slot, list(continuation[:-1]), every=True)
            for logits, token in zip(rest, continuation[1:], strict=True):
                values.append(float(log_probabilities(logits)[token]))
            slot.truncate(start)
        return values

    @torch.inference_mode()
    def features(
        self, texts: Sequence[str], layers: Sequence[int], *, before: str = "", after: str = ""
    ) -> Tensor:
        """What the model makes of each text: the mean of its tokens' vectors after each of
        `layers`, side by side, float32 (N, C·len(layers)). `before` and `after` give context and
        are not averaged."""
        head, tail = self.tokenizer.encode(before), self.tokenizer.encode(after)
        bodies = [self.tokenizer.encode(text) or tail for text in texts]
        rows: dict[int, Tensor] = {}
        order = sorted(range(len(texts)), key=lambda i: len(bodies[i]))
        for batch in (order[i : i + FEATURE_BATCH] for i in range(0, len(order), FEATURE_BATCH)):
            longest = len(bodies[batch[-1]])
            # Padding on the right changes nothing before it: attention looks back only.
            ids = [head + bodies[i] + tail + [0] * (longest - len(bodies[i])) for i in batch]
            block = torch.tensor(ids, device=self.language_model.device)
            streams = torch.cat(self.model.streams(block, layers), dim=-1)
            for x, i in zip(streams, batch, strict=True):
                rows[i] = x[len(head) : len(head) + len(bodies[i])].float().mean(0)
        return torch.stack([rows[i] for i in range(len(texts))])

    # -- computing ------------------------------------------------------------------------------

    def read(self, slot: Slot, prompt: Sequence[int]) -> Tensor:
        """Compute what the slot lacks of `prompt`; logits (V,) after its last token."""
        while (logits := self.read_chunk(slot, prompt)) is None:
            pass
        return logits

    def read_chunk(self, slot: Slot, prompt: Sequence[int]) -> Tensor | None:
        """Compute the next chunk; the logits (V,) when it was the last one.

        Where there are native steps, the last token is one of them: whether the tokens before it
        were in the cache or not, its logits are the same to the bit.
        """
        done = len(slot.ids)
        if self._native is not None and done and done == len(prompt) - 1:
            return self.step(prompt[-1:], [slot])[0]
        end = len(prompt) - (self._native is not None and len(prompt) > 1)
        chunk = list(prompt[done : min(done + PREFILL_CHUNK, end)])
        logits = self._forward(slot, chunk)
        return logits[-1] if done + len(chunk) == len(prompt) else None

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], slots: Sequence[Slot]) -> list[Tensor]:
        """Append one token to each slot; logits (V,) of each. The slots are not empty."""
        if self._native is None:
            return [
                self._forward(slot, [token])[-1] for token, slot in zip(tokens, slots, strict=True)
            ]
        try:
            logits = self._native(tokens, [slot.cache for slot in slots])
            for token, slot in zip(tokens, slots, strict=True):
                slot.ids.append(token)
        except BaseException:
            for slot in slots:
                slot.truncate(min(len(slot.ids), slot.cache.length))
            raise
        return list(logits)

    @torch.inference_mode()
    def _forward(self, slot: Slot, ids: list[int], *, every: bool = False) -> Tensor:
        """Append `ids` to the slot; float32 logits (T, V) after each of them, or (1, V)."""
        batch = torch.tensor([ids], device=self.language_model.device)
        try:
            features = self.model.features(batch, slot.cache)[0]
        except BaseException:
            # Cut short (Ctrl-C, out of memory): the cache is as long as its tokens say.
            slot.truncate(len(slot.ids))
            raise
        slot.ids += ids
        return self.model.logits(features if every else features[-1:]).float()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Small work between two steps: PyTorch's helpers would spin on, against those of the step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def biased(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """The logits (V,) with `bias` added to some tokens'. The input is left as it is."""
    if not bias:
        return logits
    ids = torch.tensor(list(bias), device=logits.device)
    values = torch.tensor(list(bias.values()), device=logits.device, dtype=logits.dtype)
    return logits.index_add(0, ids, values)


class Run:
    """One request on its way: its slot, its random numbers, and what it has made so far.

    Read the prompt until `read_prompt` says that it is done; then `choose` a token and let the
    engine `advance`, in turn, until `ended`. `close` gives the slot back.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine, self._request = engine, request
        self._prompt = list(request.prompt)
        self._room = engine.room(self._prompt, request.max_tokens)
        self._decoder = StreamDecoder(engine.tokenizer)
        self._stops = StopStrings(request.stop)
        self._random = make_generator(request.sampling.seed)
        self._constraint: Constraint | None = None
        if request.grammar is not None:
            self._constraint = engine.constrainer.start(request.grammar)
        self.made: list[int] = []
        self.logits: Tensor | None = None  # (V,), after the last token read
        self.ended = False
        self.slot, self._cached = engine.slots.acquire(self._prompt)

    def read_prompt(self) -> bool:
        """Compute the next chunk of the prompt; True when all of it has been read."""
        if self.logits is None:
            self.logits = self._engine.read_chunk(self.slot, self._prompt)
        return self.logits is not None

    def choose(self) -> Iterator[Token | End]:
        """Draw the next token; it is followed by an End if it is the last one."""
        with one_thread():
            token = self._draw()
        self.made.append(token.id)
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

    def close(self) -> None:
        """Give the slot back. May be called twice."""
        if self.slot.busy:
            self._engine.slots.release(self.slot)
        self.ended = True

    def _draw(self) -> Token:
        request, logits = self._request, self.logits
        assert logits is not None
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
