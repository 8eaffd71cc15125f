"""The models that a server has, by the names that clients give them."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor

from trivium.language.chat_template import ChatTemplate
from trivium.language.engine import End, Engine, Request, Token
from trivium.language.tokenizer import Tokenizer
from trivium.llmos.few_shot import ToolChooser
from trivium.llmos.tools import Tool
from trivium.server.errors import ApiError

CHOOSERS = 16  # sets of tools whose chooser is kept
EXAMPLES = 4096  # vectors of example requests that are kept


class Generates(Protocol):
    """Many threads may ask at once; closing the iterator stops the work."""

    def generate(self, request: Request) -> Iterator[Token | End]: ...


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
    """An engine that many threads use: all generation goes through `generates`."""

    def __init__(self, engine: Engine, generates: Generates) -> None:
        vars(self).update(vars(engine))  # the same engine, asked another way
        self.generates = generates

    def generate(self, request: Request) -> Iterator[Token | End]:
        return self.generates.generate(request)


class Chooser(ToolChooser):
    """A chooser that keeps vectors in memory only: clients send any number of tools."""

    def __init__(
        self, engine: Engine, tools: Sequence[Tool], known: "OrderedDict[str, Tensor]"
    ) -> None:
        self._known = known
        super().__init__(engine, tools)

    def best_tool(self, vector: Tensor) -> Tool:
        """The tool for a request, when one must be called."""
        scores = self._standard(vector) @ self._weights + self._offset
        tool = self.tools[1 + int(scores[1:].argmax())]
        assert tool is not None
        return tool

    def _remembered(self, texts: list[str]) -> Tensor:
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        if fresh:
            self._known.update(zip(fresh, self._features(fresh), strict=True))
        vectors = torch.stack([self._known[text] for text in texts])
        for text in texts:
            self._known.move_to_end(text)
        while len(self._known) > EXAMPLES:
            self._known.popitem(last=False)
        return vectors


@dataclass
class Language:
    """A language model that is served."""

    id: str
    engine: SharedEngine
    created: int = field(default_factory=lambda: int(time.time()))
    _vectors: "OrderedDict[str, Tensor]" = field(default_factory=OrderedDict)
    _choosers: "OrderedDict[str, Chooser]" = field(default_factory=OrderedDict)
    _lock: Any = field(default_factory=Lock)

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
        return self.engine.slots.tokens

    def chooser(self, tools: Sequence[Tool]) -> Chooser:
        key = repr([tool.to_json() for tool in tools])
        with self._lock:
            if key not in self._choosers:
                self._choosers[key] = Chooser(self.engine, tools, self._vectors)
            self._choosers.move_to_end(key)
            while len(self._choosers) > CHOOSERS:
                self._choosers.popitem(last=False)
            return self._choosers[key]

    def card(self) -> dict[str, Any]:
        chat = self.engine.language_model.template is not None
        capabilities = ["chat", "completions"] if chat else ["completions"]
        return {"context_length": self.engine.context, "capabilities": capabilities}

    def close(self) -> None:
        close = getattr(self.engine.generates, "close", None)
        if close is not None:
            close()


@dataclass
class Embedding:
    """An embedding model that is served."""

    id: str
    embedder: Embeds
    created: int = field(default_factory=lambda: int(time.time()))

    cached_tokens = 0

    def card(self) -> dict[str, Any]:
        return {"capabilities": ["embeddings"]}

    def close(self) -> None: ...


Model = Language | Embedding


class Models:
    """Models by name, each loaded by its function when `load` is called."""

    def __init__(self, loaders: Mapping[str, Callable[[], Model]]) -> None:
        self._loaders = dict(loaders)
        self._loaded: dict[str, Model] = {}
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
