"""A server on a port of this machine, over tiny models; and a generator that plays a script."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from torch import Tensor

from trivium.language.chat_template import ChatTemplate
from trivium.language.engine import End, Engine, Request, Token
from trivium.language.pretrained import LanguageModel
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.llmos.examples import EXAMPLES, NO_TOOL
from trivium.server.app import Settings, create_app
from trivium.server.run import Uvicorn, bind, url_of
from trivium.server.served import Embedding, Generates, Language, Models, SharedEngine

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_TOOLS = "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}" + CHATML
CONTEXT = 2048


class OneAtATime:
    """Requests wait for one another, as they would not in a batch."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._lock = engine, threading.Lock()

    def generate(self, request: Request) -> Iterator[Token | End]:
        with self._lock:
            yield from self._engine.generate(request)


@dataclass
class Script:
    """Says `texts`, each as a token of its own, `seconds` apart; `fail` is raised after them."""

    texts: Sequence[str] = ("one", " two", " three")
    seconds: float = 0.0
    fail: Exception | None = None
    started: int = 0
    closed: list[float] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    def generate(self, request: Request) -> Iterator[Token | End]:
        with self._lock:
            self.started += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.asked.append(request)
        try:
            for i, text in enumerate(self.texts):
                time.sleep(self.seconds)
                yield Token(i + 300, text)
            if self.fail is not None:
                raise self.fail
            yield End("stop", "", len(request.prompt), len(self.texts), 0)
        finally:
            with self._lock:
                self.at_once -= 1
                self.closed.append(time.monotonic())


class Letters:
    """Embeds a text as how often it has each of four letters."""

    max_tokens = 100

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def embed(self, texts: Sequence[str]) -> Tensor:
        counts = torch.tensor([[float(text.count(c)) for c in "aeio"] for text in texts])
        return torch.nn.functional.normalize(counts, dim=1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    words = [request for known in EXAMPLES.values() for request, _ in known]
    return Tokenizer.train([*words, *NO_TOOL, '{"name": "x", "arguments": {}}'], 600)


@pytest.fixture(scope="session")
def engine(tokenizer: Tokenizer) -> Callable[[str | None], Engine]:
    """Makes a tiny random engine with the template given."""

    def make(template: str | None) -> Engine:
        torch.manual_seed(0)
        config = TransformerConfig(
            vocab_size=tokenizer.vocab_size, context=CONTEXT, width=32, layers=5, heads=4, hidden=48
        )
        model = Transformer(config).eval()
        chat = ChatTemplate(template) if template is not None else None
        return Engine(LanguageModel("tiny", model, tokenizer, chat, "float32"))

    return make


@pytest.fixture(scope="session")
def served(engine: Callable[[str | None], Engine], tokenizer: Tokenizer) -> Callable[..., Models]:
    """Makes the models of a server: each a template, with an engine of its own or a script."""

    def make(**scripts: Generates) -> Models:
        def language(name: str, template: str | None) -> Callable[[], Language]:
            made = engine(template)
            shared = SharedEngine(made, scripts.get(name) or OneAtATime(made))
            return lambda: Language(name, shared)

        models = Models(
            {
                "tiny": language("tiny", CHATML),
                "tools": language("tools", WITH_TOOLS),
                "base": language("base", None),
                "letters": lambda: Embedding("letters", Letters(tokenizer)),
            }
        )
        return models

    return make


@contextmanager
def running(
    models: Models, settings: Settings | None = None, *, load: bool = True
) -> Iterator[str]:
    """The URL of a server, which must end when it is told to, with all its threads."""
    before = set(threading.enumerate())
    if load:
        models.load()
    settings = settings or Settings()
    listener = bind("127.0.0.1", 0, None)
    server = Uvicorn(create_app(models, settings))
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve([listener])), name="test-server"
    )
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join(15)
        listener.close()
    assert not thread.is_alive()
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith("trivium-")]
    assert left == []


@pytest.fixture(scope="module")
def url(served: Callable[..., Models]) -> Iterator[str]:
    """A server over tiny random models."""
    with running(served()) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with connected(url) as client:
        yield client


@contextmanager
def connected(url: str, key: str = "none") -> Iterator[OpenAI]:
    with (
        httpx.Client(timeout=60, trust_env=False) as http,
        OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=http) as client,
    ):
        yield client
