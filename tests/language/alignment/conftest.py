"""A tiny model and batches of replies."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from trivium.data import IGNORE
from trivium.language.transformer import Transformer, TransformerConfig

VOCAB = 61


@pytest.fixture
def tiny() -> Callable[..., Transformer]:
    def make(seed: int = 0, **sizes: int) -> Transformer:
        torch.manual_seed(seed)
        settings = {"context": 32, "width": 16, "layers": 2, "heads": 2, "hidden": 32, **sizes}
        model = Transformer(TransformerConfig(vocab_size=VOCAB, **settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def replies() -> Callable[..., dict[str, Tensor]]:
    """replies(spans, groups, ranks): rows of random ids whose tokens from `first` to before `last`
    are a reply's; the rest is prompt or padding."""

    def make(
        spans: Sequence[tuple[int, int]],
        groups: Sequence[int] = (),
        ranks: Sequence[int] = (),
        *,
        length: int = 16,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(seed)
        ids = torch.randint(VOCAB, (len(spans), length), generator=rng)
        targets = torch.full_like(ids, IGNORE)
        for row, (first, last) in enumerate(spans):
            targets[row, first - 1 : last - 1] = ids[row, first:last]
            ids[row, last:] = 0
        return {
            "ids": ids,
            "targets": targets,
            "ends": torch.tensor([last - 1 for _, last in spans]),
            "groups": torch.tensor(list(groups) or [0] * len(spans)),
            "ranks": torch.tensor(list(ranks) or range(len(spans))),
        }

    return make
