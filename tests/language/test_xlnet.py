"""XLNet: who sees whom, what is predicted, and that it learns. (Against transformers:
tests/parity/test_xlnet.py.)"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.data import IGNORE
from trivium.language.permutation import PermutedBatches, permuted, permuted_token
from trivium.language.xlnet import XLNet, XLNetConfig

VOCAB = 61
SEGMENTS = torch.tensor([[0] * 6 + [1] * 6, [0] * 8 + [-1] * 4])


@pytest.fixture
def model() -> XLNet:
    torch.manual_seed(0)
    made = XLNet(XLNetConfig(vocab_size=VOCAB, width=32, layers=2, heads=4, hidden=48))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def random_ids(rows: int, length: int) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


def test_what_is_drawn() -> None:
    """A sixth of each row, in an order; never padding; the rest is known from the start."""
    ids = random_ids(2, 12)
    batch = permuted({"ids": ids, "segments": SEGMENTS}, torch.Generator().manual_seed(3))
    assert batch["places"].shape == (2, 2)
    assert torch.equal(ids.gather(1, batch["places"]), batch["targets"])
    for row in range(2):
        assert batch["order"][row, batch["places"][row]].tolist() == [1, 2]
        assert int((batch["order"][row] == 0).sum()) == 10
    assert (batch["places"][1] < 8).all()
    drawn = [
        tuple(permuted({"ids": ids}, torch.Generator().manual_seed(i))["places"][0].tolist())
        for i in range(40)
    ]
    assert len(set(drawn)) > 20


def test_a_row_of_padding_predicts_nothing() -> None:
    segments = torch.tensor([[0] + [-1] * 11, [-1] * 12])
    batch = permuted({"ids": random_ids(2, 12), "segments": segments}, torch.Generator())
    assert (batch["targets"] != IGNORE).sum() == 1


@torch.no_grad()
@pytest.mark.parametrize("segments", [None, SEGMENTS])
def test_a_query_sees_what_is_known_before_it(model: XLNet, segments: Tensor | None) -> None:
    """Change one token: who notices. In particular not the query at its own place."""
    ids = random_ids(2, 12)
    context = {} if segments is None else {"segments": segments}
    batch = permuted({"ids": ids, **context}, torch.Generator().manual_seed(3), share=3)
    order, places = batch["order"], batch["places"]
    before = model.predict(ids, order, places, segments=segments)
    texts = torch.zeros(2, 12) if segments is None else segments
    for changed in range(12):
        other = ids.clone()
        other[:, changed] = (ids[:, changed] + 1) % VOCAB
        noticed = (model.predict(other, order, places, segments=segments) != before).any(-1)
        earlier = order[:, changed, None] < order.gather(1, places)
        together = texts[:, changed, None] == texts.gather(1, places)
        assert torch.equal(noticed, earlier & together)


@torch.no_grad()
def test_from_left_to_right_is_one_of_the_orders(model: XLNet) -> None:
    ids = random_ids(2, 12)
    order, places = torch.arange(12).expand(2, -1), torch.arange(1, 12).expand(2, -1)
    torch.testing.assert_close(
        model.features(ids)[:, :-1], model.predict(ids, order, places), rtol=0, atol=1e-5
    )


def test_what_sees_nothing_is_still_a_number(model: XLNet) -> None:
    ids = random_ids(1, 5)
    first = model.predict(ids, torch.arange(5)[None], torch.zeros(1, 1, dtype=torch.long))
    first.sum().backward()
    assert first.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_every_weight_learns(model: XLNet) -> None:
    batch = permuted({"ids": random_ids(2, 12)}, torch.Generator().manual_seed(0))
    loss = permuted_token(model, batch)
    assert loss.weight == 4
    loss.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


class Counted:
    """Batches that know their place."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            self.at += 1
            yield {"ids": torch.full((2, 12), self.at)}

    def state(self) -> dict[str, Any]:
        return {"at": self.at}

    def load(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def test_batches_go_on_from_a_place() -> None:
    whole = PermutedBatches(Counted(), seed=5)
    source = iter(whole)
    batches = [next(source) for _ in range(4)]
    state = whole.state()
    rest = [next(source) for _ in range(3)]
    again = PermutedBatches(Counted(), seed=5)
    again.load(state)
    for ours, theirs in zip(again, rest, strict=False):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not torch.equal(batches[0]["places"], batches[1]["places"])
    other = next(iter(PermutedBatches(Counted(), seed=6)))
    assert not torch.equal(other["places"], batches[0]["places"])


def test_it_learns_from_both_sides() -> None:
    """Each token is the one before it plus one, from a random start: whichever are known, they tell
    the others."""
    torch.manual_seed(0)
    model = XLNet(XLNetConfig(vocab_size=12, width=32, layers=1, heads=2, hidden=64))
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def batch(rows: int = 32) -> dict[str, Tensor]:
        ids = torch.randint(12, (rows, 1), generator=rng) + torch.arange(8)
        return permuted({"ids": ids % 12}, rng, share=2)

    for _ in range(250):
        loss = permuted_token(model, batch())
        optimizer.zero_grad()
        (loss.total / loss.weight).backward()
        optimizer.step()
    data = batch(256)
    with torch.no_grad():
        said = model.logits(model.predict(data["ids"], data["order"], data["places"])).argmax(-1)
    assert (said == data["targets"]).float().mean() > 0.9
