"""How far back a model looks, for models of which that is known."""

import math

import torch
from torch import Tensor, nn

from trivium.language.reach import by_history, powers, windows


class Recalls(nn.Module):
    """Says again what stood `distance` tokens before, surely if it was shown; else anything."""

    def __init__(self, distance: int) -> None:
        super().__init__()
        self.distance, self.nothing = distance, nn.Parameter(torch.zeros(()))

    def features(self, ids: Tensor) -> Tensor:
        before = torch.cat([torch.full((len(ids), self.distance), -1), ids], 1)
        return before[:, 1 : ids.shape[1] + 1]  # of each place: what the token behind it repeats

    def logits(self, features: Tensor) -> Tensor:
        known = nn.functional.one_hot(features.clamp(min=0), 10) * 100.0
        return torch.where(features[..., None] < 0, 0.0, known)


def test_the_loss_falls_where_the_model_looks() -> None:
    rng = torch.Generator().manual_seed(0)
    text = torch.randint(10, (12,), generator=rng).repeat(20)  # of period 12
    model = Recalls(12)
    losses = by_history(model, windows([text.tolist()], 32, 50), [1, 8, 11, 12, 16, 32])
    for k, loss in losses.items():
        expected = 0.0 if k >= 12 else math.log(10)
        assert math.isclose(loss, expected, abs_tol=1e-4), k


def test_windows_are_spread_over_the_texts() -> None:
    texts = [list(range(100)), [5, 6], list(range(200, 300))]
    found = windows(texts, 9, 12)
    assert found.shape == (12, 10)
    assert (found.diff() == 1).all()  # within a text
    assert (found[:6] < 100).all() and (found[7:] >= 200).all()
    assert windows(texts, 9, 10_000).shape == (182, 10)
    assert windows([[1, 2]], 9).shape == (0, 10)


def test_powers() -> None:
    assert powers(1) == [1] and powers(8) == [1, 2, 4, 8] and powers(10) == [1, 2, 4, 8, 10]
