"""A small model that draws random numbers, and batches that know their place."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trivium.train import Loss

WIDTH = 8


class Small(nn.Module):
    """Two blocks with dropout, so that a run depends on the state of the generators."""

    def __init__(self, width: int = WIDTH, dropout: float = 0.2) -> None:
        super().__init__()
        self.enter = nn.Linear(3, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout)) for _ in range(2)
        )
        self.leave = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.leave(x).squeeze(-1)


def squares(model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
    """The sum of weighted squared errors; a row's weight is how much it counts."""
    error = (model(batch["x"]) - batch["y"]) ** 2
    return Loss((error * batch["w"]).sum(), batch["w"].sum(), {"error": error.detach().sum()})


class Rows:
    """Endless micro-batches of random rows from a seed; the n-th is always the same."""

    def __init__(self, rows: int = 4, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.rows, self.seed, self.rank, self.world, self.place = rows, seed, rank, world, 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            number = self.place * self.world + self.rank
            self.place += 1
            yield rows(self.rows, self.seed + number)

    def state(self) -> dict[str, Any]:
        return {"place": self.place}

    def load(self, state: Mapping[str, Any]) -> None:
        self.place = state["place"]


def rows(count: int, seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=rng)
    return {"x": x, "y": x.sum(1).sin(), "w": torch.rand(count, generator=rng) + 0.1}


def small(seed: int = 0, **settings: Any) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small(**settings)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def assert_near(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], within: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=within, msg=name)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
