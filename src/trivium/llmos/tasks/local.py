"""Tasks by a model on this machine: forms are enforced token by token, labels compared by their
likelihood.

The probability of a label is that of its text as the answer, among the labels that were given:

    p(label | input) = P(label | prompt with input) / Σ P(other | prompt with input)

Calibrated, each label is first divided by its probability for inputs that say nothing, which takes
away what the prompt alone, the order of the examples and the length of the label contribute: Zhao
et al., "Calibrate Before Use" (2021), equation 1 with W = diag(p_cf)⁻¹.
"""

import json
import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from trivium import hub
from trivium.errors import UsageError
from trivium.language.batching import BATCH, Batcher, Cancelled
from trivium.language.constrain import Grammar, compile_json_schema, compile_lark
from trivium.language.engine import ContextOverflow, Engine
from trivium.language.generation import End, Request
from trivium.language.sampling import Sampling
from trivium.llmos.tasks.asking import Asker, Choice, Form, ItemError, Outcome, Prompt, validated
from trivium.models import load

CONTENT_FREE = ("N/A", "", "[MASK]")  # the three of the paper
MOST_CLOSING = 4096  # tokens that may be needed to close an answer that was cut


class EngineAsker(Asker):
    """Answers with one engine, which does up to `parallel` requests at once."""

    guided = True

    def __init__(self, engine: Engine, sampling: Sampling | None = None) -> None:
        self.engine = engine
        self.name, self.parallel = engine.language_model.name, BATCH
        self._sampling = sampling or Sampling()
        self._batcher = Batcher(engine)
        self._left = threading.Event()
        self._grammars: dict[str, Grammar] = {}
        self._priors: dict[tuple[Prompt, tuple[str, ...]], list[float]] = {}
        self._closing: Tensor | None = None

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str = "auto",
        threads: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> "EngineAsker":
        """Load a model by its name in `trivium models`, or by its path."""
        if threads is not None:
            torch.set_num_threads(threads)
        engine = Engine(load(hub.find(name), device=device))
        return cls(engine, Sampling(temperature=temperature or 0.0, seed=seed))

    def close(self) -> None:
        self.cancel()
        self._batcher.close()

    def cancel(self) -> None:
        self._left.set()

    # -- how long a text is ---------------------------------------------------------------------

    def tokens(self, text: str) -> int:
        return len(self.engine.tokenizer.encode(text))

    def room(self, prompt: Prompt, max_tokens: int) -> int:
        used = max(len(self._ids(prompt)), len(self._continued(prompt)))
        free = self.engine.context - used - max_tokens
        if free < 1:
            raise UsageError(
                f"instruction, examples and an answer of {max_tokens} tokens leave no room for a "
                f"text in the {self.engine.context} tokens of {self.name}: give fewer examples"
            )
        return free

    def _ids(self, prompt: Prompt) -> list[int]:
        """The prompt as the model was trained to read it, up to where its answer begins."""
        template, tokenizer = self.engine.language_model.template, self.engine.tokenizer
        if template is None:
            return self._continued(prompt)
        return template.encode(tokenizer, [message.to_json() for message in prompt.messages])

    def _continued(self, prompt: Prompt) -> list[int]:
        return self.engine.tokenizer.encode(prompt.continued, wrap=True)

    # -- answers in a form ----------------------------------------------------------------------

    def ask(self, prompt: Prompt, form: Form, max_tokens: int) -> Outcome:
        key = form.lark or json.dumps(form.schema, ensure_ascii=False)
        grammar = self._grammars.get(key)
        if grammar is None:
            lark = form.lark
            grammar = compile_lark(lark) if lark else compile_json_schema(form.schema)
            if not lark:  # those of a lark hold the text, and serve once
                self._grammars[key] = grammar
        text, cut = self._made(self._ids(prompt), grammar, max_tokens)
        return Outcome(validated(json.loads(text), form), cut)

    def write(self, prompt: Prompt, begun: str, lark: str, max_tokens: int) -> tuple[str, bool]:
        ids = self._ids(prompt) + self.engine.tokenizer.encode(begun)
        return self._made(ids, compile_lark(lark), max_tokens)

    def _made(self, ids: list[int], grammar: Grammar, max_tokens: int) -> tuple[str, bool]:
        """A whole text of the grammar, and whether it had to be closed."""
        try:
            room = min(max_tokens, self.engine.room(ids, None))
            request = Request(ids, self._sampling, max_tokens=room, grammar=grammar)
            events = list(self._batcher.generate(request, self._left))
        except (ContextOverflow, Cancelled) as error:
            raise ItemError(str(error)) from None
        text = "".join(event.text for event in events)
        if not isinstance(events[-1], End) or events[-1].reason != "length":
            return text, False
        made = [event.id for event in events if not isinstance(event, End)]
        return self._closed(grammar, made)

    def _closed(self, grammar: Grammar, made: list[int]) -> tuple[str, bool]:
        """`made` and as little more as makes it a text of the grammar: quotes and brackets."""
        constraint = self.engine.constrainer.start(grammar)
        for token in made:
            constraint.accept(token)
        tokenizer, cut = self.engine.tokenizer, not constraint.complete
        closers = self._closers()
        while not constraint.complete:
            token = int(constraint.mask(closers.clone()).argmax())
            constraint.accept(token)
            made.append(token)
            if len(made) > MOST_CLOSING:
                raise ItemError(f"the answer has no end within {MOST_CLOSING} tokens")
        return tokenizer.decode(made), cut

    def _closers(self) -> Tensor:
        """Logits (V,) that prefer what ends a value: a quote (within a string, } is only a
        character), } and ], then what is short."""
        if self._closing is None:
            tokenizer = self.engine.tokenizer
            spelled = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
            self._closing = torch.tensor([_closeness(text) for text in spelled])
        return self._closing

    # -- labels by their likelihood -------------------------------------------------------------

    def choose(self, prompt: Prompt, labels: Sequence[str], *, calibrated: bool) -> Choice:
        scores = self._scores(prompt, labels)
        if calibrated:
            prior = self._prior(prompt.about(""), labels)
            scores = [score - usual for score, usual in zip(scores, prior, strict=True)]
        probabilities = _softmax(scores)
        best = max(range(len(labels)), key=probabilities.__getitem__)
        return Choice(labels[best], dict(zip(labels, probabilities, strict=True)))

    def _scores(self, prompt: Prompt, labels: Sequence[str]) -> list[float]:
        """log P of each label as the answer."""
        if self._left.is_set():
            raise ItemError("stopped")
        ids, continuations = self._continued(prompt), self._continuations(labels)
        try:
            scored = self._batcher.worker.call(lambda: self.engine.score(ids, continuations))
        except ContextOverflow as error:
            raise ItemError(str(error)) from None
        return [sum(values) for values in scored]

    def _continuations(self, labels: Sequence[str]) -> list[list[int]]:
        """The tokens of each label, with an end where one label begins like another."""
        encode = self.engine.tokenizer.encode
        plain = [encode(f" {label}") for label in labels]
        starts = {tuple(ids[:n]) for ids in plain for n in range(1, len(ids))}
        if not any(tuple(ids) in starts for ids in plain):
            return plain
        return [[*ids, *encode("\n\n")[:1]] for ids in plain]

    def _prior(self, prompt: Prompt, labels: Sequence[str]) -> list[float]:
        """log p of each label for inputs that say nothing: the mean of their probabilities."""
        key = (prompt, tuple(labels))
        if key not in self._priors:
            rows = [_softmax(self._scores(prompt.about(text), labels)) for text in CONTENT_FREE]
            means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
            self._priors[key] = [math.log(max(mean, 1e-30)) for mean in means]
        return self._priors[key]


def _softmax(scores: Sequence[float]) -> list[float]:
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def _closeness(token: bytes) -> float:
    """How much a token does to end a JSON text."""
    if token == b'"':
        return 400.0
    if token and not token.strip(b"]}"):
        return 300.0 - len(token)
    if token in (b".", b"!", b"?", b"0"):
        return 100.0
    return -float(len(token) or 1000)
