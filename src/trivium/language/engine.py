"""The engine: prefill a prompt once, then decode token by token from the cache.

`Engine` keeps the caches of the last prompts in slots. A new prompt takes over the slot with which
it shares the longest beginning and computes only what differs, so that the second turn of a
conversation, or the next request behind the same instructions, does not pay for the first again.
Cached and uncached decoding give the same logits, up to the order of summation.

T tokens, V vocabulary.
"""

import hashlib
import time
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
from trivium.language.tokenizer import StopStrings, StreamDecoder
from trivium.nn.attention import KVCache

PREFILL_CHUNK = 512  # tokens; bounds the memory of a long prompt
FEATURE_BATCH = 32  # texts
SLOTS = 4


class ContextOverflow(UsageError):
    """The prompt does not fit the model's context. Nothing is ever cut silently."""


@dataclass
class Slot:
    """A cache, and the tokens it holds."""

    ids: list[int] = field(default_factory=list)
    cache: KVCache = field(default_factory=KVCache)
    last_used: float = 0.0


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
        self._slots: list[Slot] = []
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
        prompt = list(request.prompt)
        room = self.room(prompt, request.max_tokens)
        decoder, stops = StreamDecoder(self.tokenizer), StopStrings(request.stop)
        random = make_generator(request.sampling.seed)
        constraint = self.constrainer.start(request.grammar) if request.grammar else None
        slot, cached = self._acquire(prompt)
        logits = self._prefill(slot, prompt)
        made: list[int] = []
        reason: Literal["stop", "length"] = "length"
        while reason == "length" and len(made) < room:
            if made:
                logits = self._forward(slot, made[-1:])[-1]
            token = self._choose(logits, request, constraint, made, random)
            made.append(token.id)
            if token.id in self.tokenizer.stop_ids:
                reason = "stop"
                break
            text, stopped = stops.push(decoder.push(token.id))
            yield replace(token, text=text)
            if stopped:
                yield End("stop", "", len(prompt), len(made), cached)
                return
            if constraint is not None and constraint.finished:
                reason = "stop"
        rest, _ = stops.push(decoder.flush())
        yield End(reason, rest + stops.flush(), len(prompt), len(made), cached)

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

    def _choose(
        self,
        logits: Tensor,
        request: Request,
        constraint: Constraint | None,
        made: list[int],
        random: torch.Generator,
    ) -> Token:
        allowed = biased(logits, request.logit_bias)
        if constraint is not None:
            allowed = constraint.mask(allowed.clone())
        chosen = next_token(allowed, request.sampling, made, random, prompt=request.prompt)
        if constraint is not None:
            constraint.accept(chosen)
        if request.top_logprobs is None:
            return Token(chosen, "")
        logprobs = log_probabilities(logits)
        top = torch.topk(logprobs, min(request.top_logprobs, len(logprobs)))
        pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        return Token(chosen, "", float(logprobs[chosen]), pairs)

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
        slot, _ = self._acquire(prompt)
        first = log_probabilities(self._prefill(slot, prompt))
        scores = []
        for continuation in continuations:
            if not continuation:
                raise UsageError("a continuation to be scored is empty")
            values = [float(first[continuation[0]])]
            if len(continuation) > 1:
                rest = self._forward(slot, list(continuation[:-1]), every=True)
                for logits, token in zip(rest, continuation[1:], strict=True):
                    values.append(float(log_probabilities(logits)[token]))
                self._truncate(slot, len(prompt))
            scores.append(values)
        return scores

    @torch.inference_mode()
    def features(
        self, texts: Sequence[str], layers: Sequence[int], *, before: str = "", after: str = ""
    ) -> Tensor:
        """What the model makes of each text: the mean of its tokens' vectors after each of
        `layers`,
        side by side, float32 (N, C·len(layers)). `before` and `after` give context and are not
        averaged."""
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

    # -- cache ----------------------------------------------------------------------------------

    def _acquire(self, prompt: list[int]) -> tuple[Slot, int]:
        """The slot to compute `prompt` in, and how many of its tokens are there already.

        At least one token is left to compute, because its logits are wanted.
        """
        best, shared = None, 0
        for slot in self._slots:
            n = min(common_prefix(slot.ids, prompt), len(prompt) - 1)
            if n > shared:
                best, shared = slot, n
        if best is None or 2 * shared < len(best.ids):
            # Most of that slot is something else: leave it whole, and copy the beginning.
            start = best.cache.copy(shared) if best is not None else KVCache()
            kept = best.ids[:shared] if best is not None else []
            if len(self._slots) >= SLOTS:
                self._slots.remove(min(self._slots, key=lambda slot: slot.last_used))
            best = Slot(list(kept), start)
            self._slots.append(best)
        self._truncate(best, shared)
        best.last_used = time.monotonic()
        return best, shared

    @staticmethod
    def _truncate(slot: Slot, length: int) -> None:
        slot.cache.truncate(length)
        del slot.ids[length:]

    def _prefill(self, slot: Slot, prompt: list[int]) -> Tensor:
        """Compute what the slot lacks of `prompt`; logits (V,) after its last token."""
        while True:
            done = len(slot.ids)
            chunk = prompt[done : done + PREFILL_CHUNK]
            logits = self._forward(slot, chunk)
            if done + len(chunk) == len(prompt):
                return logits[-1]

    @torch.inference_mode()
    def _forward(self, slot: Slot, ids: list[int], *, every: bool = False) -> Tensor:
        """Append `ids` to the slot; float32 logits (T, V) after each of them, or (1, V)."""
        if self._native is not None and len(ids) == 1 and slot.ids:
            logits = self._native(ids, [slot.cache])
            slot.ids += ids
            return logits
        batch = torch.tensor([ids], device=self.language_model.device)
        try:
            features = self.model.features(batch, slot.cache)[0]
        except BaseException:
            # Cut short (Ctrl-C, out of memory): the cache is as long as its tokens say.
            self._truncate(slot, len(slot.ids))
            raise
        slot.ids += ids
        return self.model.logits(features if every else features[-1:]).float()


def biased(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """The logits (V,) with `bias` added to some tokens'. The input is left as it is."""
    if not bias:
        return logits
    ids = torch.tensor(list(bias), device=logits.device)
    values = torch.tensor(list(bias.values()), device=logits.device, dtype=logits.dtype)
    return logits.index_add(0, ids, values)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share from the start."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
