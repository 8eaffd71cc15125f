"""A tiny random model with a tokenizer trained in the test."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from trivium.language.engine import Engine
from trivium.language.pretrained import LanguageModel
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.nn.packed import PackedLinear, pack

TEXTS = ['the quick brown fox jumps over the lazy dog 0123456789 {}[]":, 日本語 текст 🙂'] * 20
SIZES = {"context": 96, "width": 32, "layers": 2, "heads": 4, "groups": 2, "hidden": 48}


def pack_weights(model: nn.Module) -> None:
    """Turn every matrix into a packed one, as those of a published file are."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear | nn.Embedding):
                setattr(parent, name, PackedLinear(pack(child.weight.detach()), "Q8_0"))
    model.to(torch.bfloat16)


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., Engine]:
    """make_engine(seed, packed=…, sizes of the config): equal arguments, equal engines."""
    tokenizer = Tokenizer.train(TEXTS, 320)

    def make(seed: int = 0, *, packed: bool = False, **config: int) -> Engine:
        torch.manual_seed(seed)
        sizes = {**SIZES, **({"width": 64, "hidden": 96} if packed else {}), **config}
        model = Transformer(TransformerConfig(vocab_size=tokenizer.vocab_size, **sizes))
        with torch.no_grad():  # far from uniform, so that a wrong token shows
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        if packed:
            pack_weights(model)
        return Engine(LanguageModel("tiny", model.eval(), tokenizer, None, "float32"))

    return make
