"""How far back a language model looks: the loss of the same tokens when only so many before them
are shown (as Khandelwal et al. 2018 do for LSTMs).

    loss(k) = mean over targets t of −ln p(t | the k tokens before t)

It falls with k for as long as the model makes use of more. N windows, T tokens, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TOGETHER = 1 << 14  # tokens that are read at once


def windows(texts: Iterable[Sequence[int]], length: int, most: int = 1024) -> Tensor:
    """Up to `most` windows (N, length + 1) of ids, spread over the texts that are long enough, each
    of which ends with a token to predict. None at all: (0, length + 1)."""
    whole = [torch.tensor(ids) for ids in texts if len(ids) > length]
    places = sum(len(ids) - length for ids in whole)
    stride = max(1, places // most)
    found = [ids.unfold(0, length + 1, stride) for ids in whole]
    kept = list(islice((row for rows in found for row in rows), most))
    return torch.stack(kept) if kept else torch.empty(0, length + 1, dtype=torch.long)


def powers(length: int) -> list[int]:
    """1, 2, 4, … and `length`."""
    return [1 << i for i in range(length.bit_length()) if 1 << i < length] + [length]


@torch.no_grad()
def by_history(model: Any, found: Tensor, shown: Sequence[int]) -> dict[int, float]:
    """k → nats per token, for windows (N, T + 1), whose last tokens are predicted from the k
    before."""
    was, device = model.training, next(model.parameters()).device
    model.eval()
    losses = {}
    for k in shown:
        total = 0.0
        for rows in torch.split(found[:, -k - 1 :], max(1, TOGETHER // k)):
            ids = rows.to(device)
            last = model.features(ids[:, :-1])[:, -1]
            total += float(F.cross_entropy(model.logits(last).float(), ids[:, -1], reduction="sum"))
        losses[k] = total / len(found)
    model.train(was)
    return losses
