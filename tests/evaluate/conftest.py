"""A tiny random model, in full precision or with packed weights as published files have them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from trivium.language.engine import Engine
from trivium.language.pretrained import LanguageModel
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.nn.packed import PackedLinear, pack

TEXTS = ["the quick brown fox jumps over the lazy dog 0123456789, 日本語 текст 🙂\n"] * 20


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., Engine]:
    def make(seed: int = 0, *, packed: bool = False, context: int = 64) -> Engine:
        tokenizer = Tokenizer.train(TEXTS, 320)
        torch.manual_seed(seed)
        config = TransformerConfig(tokenizer.vocab_size, context, 64, 2, 4, 2, hidden=96)
        model = Transformer(config).eval()
        with torch.no_grad():  # far from uniform, so that a wrong token shows
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        if packed:
            for parent in list(model.modules()):
                for name, child in list(parent.named_children()):
                    if isinstance(child, nn.Linear | nn.Embedding):
                        small = PackedLinear(pack(child.weight.detach()), "Q8_0")
                        setattr(parent, name, small)
            model.to(torch.bfloat16)
        return Engine(LanguageModel("tiny", model, tokenizer, None, "float32"))

    return make
