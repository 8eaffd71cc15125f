"""The engine: prefill a prompt once, then decode token by token from the cache.

`Engine` keeps the caches of the last prompts in slots. A new prompt takes over the slot with which
it shares the longest beginning and computes only what differs, so that the second turn of a
conversation, or the next request behind the same instructions, does not pay for the first again.
Cached and uncached decoding give the same logits: to the bit where the native pass computes them,
up to the order of summation elsewhere.

T tokens, V vocabulary.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from trivium.errors import UsageError
from trivium.language.compiled_step import CompiledStep
from trivium.language.constrain import Constrainer
from trivium.language.generation import End, Request, Run, Token
from trivium.language.native_step import NativeStep
from trivium.language.pretrained import LanguageModel
from trivium.language.sampling import log_probabilities
from trivium.language.slots import Slot, Slots
from trivium.language.transformer import TransformerConfig

# Tokens of a prompt that are read at once. It bounds the memory of a long prompt, and how long the
# others of a batch wait; on a CPU more tokens together are no faster.
CPU_CHUNK, GPU_CHUNK = 128, 512
ATTENTION = 3  # how many times as long an operation of attention takes as one of a matrix product
DRAFT_ROWS = 16  # tokens read in one step, drafts among them
FEW_RUNS = 8  # from here on a step is busy enough without drafts
FEATURE_BATCH = 32  # texts


class ContextOverflow(UsageError):
    """The prompt does not fit the model's context. Nothing is ever cut silently."""


class Engine:
    """Generates and scores with one language model, one request at a time."""

    def __init__(self, language_model: LanguageModel) -> None:
        self.language_model = language_model
        self.model = language_model.model
        self.tokenizer = language_model.tokenizer
        self.context: int = self.model.config.context
        self.slots = Slots()
        self.chunk = CPU_CHUNK if language_model.device.type == "cpu" else GPU_CHUNK
        self._native = NativeStep.of(self.model)
        self._compiled = CompiledStep.of(self.model)
        # Whether the logits of `extend` are the same to the bit however many tokens it reads at
        # once. Only then are drafts read: otherwise a near tie could fall the other way.
        self.exact_rows = self._native is not None

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

    def advance(self, runs: Sequence[Run]) -> None:
        """One step for all of `runs`: read the token that each of them chose last, and drafts of
        what may follow it, as long as there is room for them in the step."""
        few = self.exact_rows and len(runs) < FEW_RUNS
        drafts = DRAFT_ROWS // len(runs) - 1 if few else 0
        ids = [run.pending(drafts) for run in runs]
        for run, logits in zip(runs, self.extend([run.slot for run in runs], ids), strict=True):
            run.logits = logits

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
            (rest,) = self.extend([slot], [continuation[:-1]])
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

    def chunk_behind(self, depth: int) -> int:
        """How many tokens of a prompt are read at once behind `depth` others.

        The deeper, the fewer, since each looks back at all before it: so a chunk takes about as
        long anywhere. The rule depends on nothing else, so prompts are always cut alike.
        """
        config = self.model.config
        if not isinstance(config, TransformerConfig):
            return self.chunk
        head_dim = config.head_dim or config.width // config.heads
        mixed = config.heads * head_dim  # numbers that attention makes of a token
        weights = config.width * (4 * mixed + 3 * config.hidden)  # of a layer, nearly
        even = weights // (2 * ATTENTION * mixed)  # where looking back takes as long as the rest
        # Without the native pass few rows cost nearly as much as many.
        least = self.chunk // (8 if self._native is not None else 2)
        return max(1, least, self.chunk * even // (even + depth))

    def read_chunk(self, slot: Slot, prompt: Sequence[int]) -> Tensor | None:
        """Compute the next chunk; the logits (V,) when it was the last one."""
        done = len(slot.ids)
        chunk = list(prompt[done : done + self.chunk_behind(done)])
        logits = self._forward(slot, chunk)
        return logits[-1] if done + len(chunk) == len(prompt) else None

    @torch.inference_mode()
    def extend(self, slots: Sequence[Slot], ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Append some tokens to each slot, at least one; float32 logits (T, V) after each of them.

        No slot may be given twice, and none may be empty. After an error all are as they were.
        """
        before = [len(slot.ids) for slot in slots]
        try:
            caches = [slot.cache for slot in slots]
            if self._native is not None:
                logits = self._native.extend(ids, caches, every=True)
            elif self._compiled is not None and all(len(new) == 1 for new in ids):
                logits = self._compiled([new[0] for new in ids], caches)
            else:
                pairs = zip(slots, ids, strict=True)
                return [self._forward(slot, list(new), every=True) for slot, new in pairs]
            for slot, new in zip(slots, ids, strict=True):
                slot.ids += new
            return list(logits.split_with_sizes([len(new) for new in ids]))
        except BaseException:
            for slot, length in zip(slots, before, strict=True):
                slot.truncate(length)
            raise

    @torch.inference_mode()
    def _forward(self, slot: Slot, ids: list[int], *, every: bool = False) -> Tensor:
        """Append `ids` to the slot; float32 logits (T, V) after each of them, or (1, V)."""
        try:
            if self._native is not None:
                logits = self._native.extend([ids], [slot.cache], every=every)
                slot.ids += ids
                return logits
            batch = torch.tensor([ids], device=self.language_model.device)
            features = self.model.features(batch, slot.cache)[0]
        except BaseException:
            # Cut short (Ctrl-C, out of memory): the cache is as long as its tokens say.
            slot.truncate(len(slot.ids))
            raise
        slot.ids += ids
        return self.model.logits(features if every else features[-1:]).float()
