"""The features of the tokens that count, of rows that are padded on the right.

Where much of a batch is padding, its rows are put behind one another as the texts of a single row
that do not see each other (`trivium.nn.segments`), so that padding costs nothing.

R rows, T tokens of a row, M real tokens of all rows, N of them with a target, C width.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trivium.data import IGNORE

WASTE = 0.1  # share of padding from which on it pays


class Places(NamedTuple):
    """features (N, C) at the places with a target; their rows and columns (N,), ascending."""

    features: Tensor
    rows: Tensor
    columns: Tensor


def places(model: Any, batch: Mapping[str, Tensor]) -> Places:
    """Of ids and targets (R, T); with segments (R, T), if several texts share a row."""
    targets = batch["targets"]
    counted = targets != IGNORE
    rows, columns = counted.nonzero(as_tuple=True)
    if "segments" in batch:
        features = model.features(batch["ids"], segments=batch["segments"])
        return Places(features[rows, columns], rows, columns)
    # Nothing behind the last target is looked at.
    real = counted.flip(1).cumsum(1).flip(1) > 0
    return Places(real_features(model, batch["ids"], real)[counted[real]], rows, columns)


def real_features(model: Any, ids: Tensor, real: Tensor) -> Tensor:
    """(M, C) of the tokens where `real` (R, T) is True, which are those that each row begins
    with."""
    rows, columns = real.nonzero(as_tuple=True)
    if len(rows) > (1 - WASTE) * ids.numel() or not len(rows):
        found: Tensor = model.features(ids)
        return found[rows, columns]
    packed: Tensor = model.features(ids[rows, columns][None], segments=rows[None])
    return packed[0]


def last_features(model: Any, ids: Tensor, ends: Tensor) -> Tensor:
    """(R, C) of the last token of each row, which is at `ends` (R,)."""
    real = torch.arange(ids.shape[1], device=ids.device) <= ends[:, None]
    return real_features(model, ids, real)[(ends + 1).cumsum(0) - 1]
