"""A server on a port of this machine, over tiny models; and a generator that plays a script."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from openai.types.chat import ChatCompletionChunk
from torch import Tensor

from trivium.language.batching import Batcher, Worker
from trivium.language.chat_template import ChatTemplate
from trivium.language.engine import Engine
from trivium.language.generation import Run
from trivium.language.pretrained import LanguageModel
from trivium.language.slots import Slot
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.llmos.examples import EXAMPLES, NO_TOOL
from trivium.server.app import Settings, create_app
from trivium.server.run import Uvicorn, bind, url_of
from trivium.server.served import Embedding, Language, Models

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_TOOLS = "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}" + CHATML
CONTEXT = 2048
ASK: list[Any] = [{"role": "user", "content": "Who wrote Hamlet?"}]


class Paced(Engine):
    """An engine whose steps and prompts take time; it counts them, and may `fail`."""

    def __init__(
        self,
        engine: Engine,
        *,
        step: float = 0.0,
        chunk: float = 0.0,
        size: int = 128,
        fail: Exception | None = None,
    ) -> None:
        vars(self).update(vars(engine))
        self.chunk = size
        self._seconds, self._fail = (step, chunk), fail
        self.steps = self.chunks = self.most_at_once = 0

    def advance(self, runs: Sequence[Run]) -> None:
        self.steps += 1
        self.most_at_once = max(self.most_at_once, len(runs))
        time.sleep(self._seconds[0])
        if self._fail is not None and self.steps > 3:
            raise self._fail
        super().advance(runs)

    def read_chunk(self, slot: Slot, prompt: Sequence[int]) -> Tensor | None:
        self.chunks += 1
        time.sleep(self._seconds[1])
        return super().read_chunk(slot, prompt)


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
def paced(engine: Callable[[str | None], Engine]) -> Callable[..., Paced]:
    """Makes a tiny engine that chats, slowly."""
    return lambda **options: Paced(engine(CHATML), **options)


@pytest.fixture(scope="session")
def served(engine: Callable[[str | None], Engine], tokenizer: Tokenizer) -> Callable[..., Models]:
    """Makes the models of a server: each of another template; `tiny` may be an engine given."""

    def make(tiny: Engine | None = None) -> Models:
        worker = Worker()

        def language(name: str, engine: Engine) -> Callable[[], Language]:
            return lambda: Language(name, Batcher(engine, worker=worker))

        def with_caller() -> Language:
            caller = Language("both", Batcher(engine(WITH_TOOLS), worker=worker))
            return Language("both", Batcher(engine(CHATML), worker=worker), caller)

        return Models(
            {
                "tiny": language("tiny", tiny or engine(CHATML)),
                "both": with_caller,
                "tools": language("tools", engine(WITH_TOOLS)),
                "base": language("base", engine(None)),
                "letters": lambda: Embedding("letters", Letters(tokenizer), worker),
            },
            worker,
        )

    return make


@pytest.fixture(scope="session")
def endless(tokenizer: Tokenizer) -> dict[str, Any]:
    """Fields of a request that make the tiny model say "e" until it is stopped."""
    (letter,) = tokenizer.encode("e")
    return {"temperature": 0, "logit_bias": {str(letter): 100}}


def joined(chunks: list[ChatCompletionChunk], index: int = 0) -> dict[str, Any]:
    """What the deltas of one choice add up to, by OpenAI's rules."""
    message: dict[str, Any] = {"content": "", "calls": {}, "logprobs": []}
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.index != index:
                continue
            delta = choice.delta
            message["content"] += delta.content or ""
            if delta.role:
                assert "role" not in message, "the role comes once"
                message["role"] = delta.role
            for call in delta.tool_calls or ():
                known = message["calls"].setdefault(call.index, {"arguments": ""})
                if call.id:
                    assert "id" not in known and call.function is not None
                    known |= {"id": call.id, "name": call.function.name, "type": call.type}
                assert call.function is not None
                known["arguments"] += call.function.arguments or ""
            if choice.logprobs:
                message["logprobs"] += choice.logprobs.content or []
            if choice.finish_reason:
                assert "reason" not in message
                message["reason"] = choice.finish_reason
    return message


@contextmanager
def running(
    models: Models,
    settings: Settings | None = None,
    *,
    load: bool = True,
    host: str = "127.0.0.1",
) -> Iterator[str]:
    """The URL of a server, which must end when it is told to, with all its threads."""
    before = set(threading.enumerate())
    if load:
        models.load()
    settings = settings or Settings()
    listener = bind(host, 0, None)
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
