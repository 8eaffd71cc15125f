"""An asker that plays a part, and a tiny model that answers in earnest."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from trivium.language.chat_template import ChatTemplate
from trivium.language.engine import Engine
from trivium.language.pretrained import LanguageModel
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.llmos.tasks.asking import Asker, Choice, Form, Outcome, Prompt

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = ['Anna met Ben in Rome on Monday, 12 May. {"text": "type", "entities": []} 日本 🙂'] * 20


class Actor(Asker):
    """Answers with what `plays` makes of the text; a word is a token. `asked`: the prompts."""

    name, parallel, guided = "actor", 2, False

    def __init__(self, plays: Callable[[str], Any], room: int = 1000) -> None:
        self.plays, self._room = plays, room
        self.asked: list[Prompt] = []
        self.cancelled = threading.Event()

    def ask(self, prompt: Prompt, form: Form, max_tokens: int) -> Outcome:
        self.asked.append(prompt)
        value = self.plays(prompt.text)
        return value if isinstance(value, Outcome) else Outcome(value)

    def choose(self, prompt: Prompt, labels: Sequence[str], *, calibrated: bool) -> Choice:
        self.asked.append(prompt)
        found: Choice = self.plays(prompt.text)
        return found

    def tokens(self, text: str) -> int:
        return len(text.split())

    def room(self, prompt: Prompt, max_tokens: int) -> int:
        return self._room

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        self.cancel()


@pytest.fixture
def actor() -> type[Actor]:
    return Actor


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., Engine]:
    tokenizer = Tokenizer.train(TEXTS, 400)

    def make(*, template: bool = True, context: int = 2048) -> Engine:
        torch.manual_seed(0)
        config = TransformerConfig(
            tokenizer.vocab_size, context=context, width=32, layers=2, heads=4, hidden=48
        )
        model = Transformer(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        chat = ChatTemplate(CHATML) if template else None
        return Engine(LanguageModel("tiny", model, tokenizer, chat, "float32"))

    return make
