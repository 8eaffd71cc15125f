"""The models that a server has, by the names that clients give them."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from trivium.language.batching import Batcher, Worker
from trivium.language.chat_template import ChatTemplate
from trivium.language.constrain import Constrainer
from trivium.language.engine import Engine
from trivium.language.generation import End, Request, Token
from trivium.language.tokenizer import Tokenizer
from trivium.llmos.few_shot import ToolChooser
from trivium.llmos.tools import Tool
from trivium.server.errors import ApiError

T = TypeVar("T")
CHOOSERS = 16  # sets of tools whose chooser is kept
EXAMPLES = 4096  # vectors of example requests that are kept
PIECE = 512  # characters whose features are computed between two steps


class Embeds(Protocol):
    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def max_tokens(self) -> int:
        """The longest text it reads."""
        ...

    def embed(self, texts: Sequence[str]) -> Tensor:
        """(N, C), float32"""
        ...


class SharedEngine(Engine):
    """A batcher's engine as any thread may use it, for one answer: whatever computes is done by the
    batcher's worker, in pieces. When `left` is set, generation ends with `Cancelled`."""

    def __init__(self, batcher: Batcher, left: threading.Event | None = None) -> None:
        vars(self).update(vars(batcher.engine))  # the same engine, asked another way
        self._batcher, self._left = batcher, left

    @property
    def constrainer(self) -> Constrainer:
        return self._batcher.engine.constrainer

    def generate(self, request: Request) -> Iterator[Token | End]:
        return self._batcher.generate(request, self._left)

    def score(
        self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        ask, engine = self._batcher.worker.call, self._batcher.engine
        return [ask(partial(engine.score, prompt, [c]))[0] for c in continuations]

    def features(
        self, texts: Sequence[str], layers: Sequence[int], *, before: str = "", after: str = ""
    ) -> Tensor:
        compute = partial(self._batcher.engine.features, layers=layers, before=before, after=after)
        call = self._batcher.worker.call
        return torch.cat([call(partial(compute, some)) for some in pieces(texts, PIECE, len)])


def pieces(texts: Sequence[T], most: int, size: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Successive texts which, padded to the longest of them, have at most `most` in all."""
    start, longest = 0, 0
    for i, text in enumerate(texts):
        longest = max(longest, size(text))
        if i > start and longest * (i + 1 - start) > most:
            yield texts[start:i]
            start, longest = i, size(text)
    yield texts[start:]


class Chooser(ToolChooser):
    """A chooser that keeps vectors in memory only: clients send any number of tools."""

    def __init__(self, engine: Engine, tools: Sequence[Tool], known: "Vectors") -> None:
        self._known = known
        super().__init__(engine, tools)

    def best_tool(self, vector: Tensor) -> Tool:
        """The tool for a request, when one must be called."""
        scores = self._standard(vector) @ self._weights + self._offset
        tool = self.tools[1 + int(scores[1:].argmax())]
        assert tool is not None
        return tool

    def _remembered(self, texts: list[str]) -> Tensor:
        return self._known.of(texts, self._features)


class Vectors:
    """The vectors of the last example requests."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, texts: Sequence[str], compute: Callable[[Sequence[str]], Tensor]) -> Tensor:
        """One for each text (N, F). Those that are not known are computed, outside the lock."""
        with self._lock:
            found = {text: self._known[text] for text in texts if text in self._known}
        fresh = [text for text in dict.fromkeys(texts) if text not in found]
        if fresh:
            found |= zip(fresh, compute(fresh), strict=True)
        with self._lock:
            for text in texts:
                self._known[text] = found[text]
                self._known.move_to_end(text)
            while len(self._known) > EXAMPLES:
                self._known.popitem(last=False)
        return torch.stack([found[text] for text in texts])


@dataclass
class Language:
    """A language model that is served. Only the batcher's worker lets its engine compute.

    caller: the same model with an adapter for calls, which writes them where tools are offered
    """

    id: str
    batcher: Batcher
    caller: "Language | None" = None
    created: int = field(default_factory=lambda: int(time.time()))
    _vectors: Vectors = field(default_factory=Vectors)
    _choosers: "OrderedDict[str, Chooser]" = field(default_factory=OrderedDict)
    _lock: Any = field(default_factory=threading.Lock)

    @property
    def engine(self) -> Engine:
        return self.batcher.engine

    @property
    def template(self) -> ChatTemplate:
        template = self.engine.language_model.template
        if template is None:
            raise ApiError(
                400,
                f"{self.id} has no chat template, so it cannot hold a conversation: use "
                "/v1/completions",
                param="model",
                code="no_chat_template",
            )
        return template

    @property
    def fingerprint(self) -> str:
        return f"fp_{self.engine.fingerprint[:10]}"

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values are kept."""
        of_caller = self.caller.cached_tokens if self.caller else 0
        return self.engine.slots.tokens + of_caller

    def chooser(self, tools: Sequence[Tool]) -> Chooser:
        """The one for these tools; made outside the lock, so that others need not wait."""
        key = repr([tool.to_json() for tool in tools])
        with self._lock:
            chooser = self._choosers.get(key)
        chooser = chooser or Chooser(SharedEngine(self.batcher), tools, self._vectors)
        with self._lock:
            self._choosers[key] = chooser
            self._choosers.move_to_end(key)
            while len(self._choosers) > CHOOSERS:
                self._choosers.popitem(last=False)
        return chooser

    def card(self) -> dict[str, Any]:
        chat = self.engine.language_model.template is not None
        capabilities = ["chat", "completions"] if chat else ["completions"]
        return {"context_length": self.engine.context, "capabilities": capabilities}

    def close(self) -> None:
        self.batcher.close()
        if self.caller:
            self.caller.close()


@dataclass
class Embedding:
    """An embedding model that is served."""

    id: str
    embedder: Embeds
    worker: Worker
    created: int = field(default_factory=lambda: int(time.time()))

    cached_tokens = 0

    def card(self) -> dict[str, Any]:
        return {"capabilities": ["embeddings"]}

    def close(self) -> None: ...


Model = Language | Embedding


class Models:
    """Models by name, each loaded by its function when `load` is called.

    `worker` computes for all of them, and ends with them.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], Model]], worker: Worker) -> None:
        self._loaders = dict(loaders)
        self._loaded: dict[str, Model] = {}
        self._worker = worker
        self._closed = False

    @property
    def ready(self) -> bool:
        return len(self._loaded) == len(self._loaders)

    def load(self) -> None:
        for name, loader in self._loaders.items():
            if name not in self._loaded:
                self._loaded[name] = loader()
            if self._closed:
                self._loaded[name].close()
                return

    def close(self) -> None:
        self._closed = True
        for model in self._loaded.values():
            model.close()
        self._worker.close()

    def cached_tokens(self) -> int:
        return sum(model.cached_tokens for model in self._loaded.values())

    def cards(self) -> list[dict[str, Any]]:
        return [self.card(name) for name in self._loaders]

    def card(self, name: str) -> dict[str, Any]:
        """OpenAI's description of a model, with more when it is loaded."""
        self._known(name)
        model = self._loaded.get(name)
        created = model.created if model else int(time.time())
        card = {"id": name, "object": "model", "created": created, "owned_by": "trivium"}
        return card | (model.card() if model else {})

    def language(self, name: str) -> Language:
        model = self._get(name)
        if not isinstance(model, Language):
            raise ApiError(
                400,
                f"{name} makes embeddings, not text: use /v1/embeddings",
                param="model",
                code="wrong_kind_of_model",
            )
        return model

    def embedding(self, name: str) -> Embedding:
        model = self._get(name)
        if not isinstance(model, Embedding):
            raise ApiError(
                400,
                f"{name} makes text, not embeddings: serve an embedding model beside it",
                param="model",
                code="wrong_kind_of_model",
            )
        return model

    def _get(self, name: str) -> Model:
        self._known(name)
        if name not in self._loaded:
            raise ApiError(503, f"{name} is being loaded: try again", code="model_loading", retry=2)
        return self._loaded[name]

    def _known(self, name: str) -> None:
        if name not in self._loaders:
            shown = name if len(name) <= 100 else f"{name[:100]}…"
            raise ApiError(
                404,
                f"there is no model {shown!r} here; there is {', '.join(self._loaders)}",
                param="model",
                code="model_not_found",
            )
