"""Features of the tokens that count are those of the padded batch, whatever is padding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.data import IGNORE
from trivium.language.alignment.places import last_features, places, real_features

FULL = [(3, 16), (2, 16), (6, 16)]
RAGGED = [(3, 9), (2, 15), (6, 7), (1, 4)]


@pytest.mark.parametrize("spans", [FULL, RAGGED])
def test_padding_changes_nothing(
    tiny: Callable[..., Any], replies: Callable[..., Any], spans: list[tuple[int, int]]
) -> None:
    model, batch = tiny(), replies(spans)
    found = places(model, batch)
    whole = model.features(batch["ids"])
    rows, columns = (batch["targets"] != IGNORE).nonzero(as_tuple=True)
    assert torch.equal(found.rows, rows) and torch.equal(found.columns, columns)
    torch.testing.assert_close(found.features, whole[rows, columns])
    ends = batch["ends"]
    torch.testing.assert_close(
        last_features(model, batch["ids"], ends), whole[torch.arange(len(spans)), ends]
    )


def test_padding_is_not_computed(
    tiny: Callable[..., Any], replies: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = tiny(), []
    features = model.features

    def watched(ids: Tensor, **more: Any) -> Tensor:
        seen.append(ids)
        return features(ids, **more)

    monkeypatch.setattr(model, "features", watched)
    places(model, replies(RAGGED))
    assert seen[0].shape == (1, sum(last - 1 for _, last in RAGGED))
    places(model, replies(FULL))
    assert seen[1].shape == (3, 16)


def test_rows_without_any_target(tiny: Callable[..., Any], replies: Callable[..., Any]) -> None:
    model, batch = tiny(), replies(RAGGED)
    batch["targets"][1] = IGNORE
    assert 1 not in places(model, batch).rows
    batch["targets"][:] = IGNORE
    assert places(model, batch).features.shape == (0, 16)
    assert real_features(model, batch["ids"], batch["ids"] < 0).shape == (0, 16)
