"""The loop against a plain one, exact accumulation, what is skipped, what the caller may do."""

import math
import random
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.conftest import (
    Rows,
    Small,
    assert_near,
    assert_same,
    rows,
    small,
    squares,
    weights,
)
from torch import Tensor, nn

from trivium.errors import TriviumError, UsageError
from trivium.train import Loss, TrainConfig, restore_best, train
from trivium.train.parallel import blocks
from trivium.train.schedules import rate

PLAIN: dict[str, Any] = {"steps": 5, "learning_rate": 1e-2, "device": "cpu"}


def finished(model: nn.Module, batches: Any = None, loss: Any = squares, **settings: Any) -> Any:
    """The steps of a whole run."""
    config = TrainConfig(**PLAIN | settings)
    return list(train(model, loss, Rows() if batches is None else batches, config))


def test_a_run_is_that_of_a_plain_loop() -> None:
    """PyTorch's own loop, optimizer, clipping and schedule; in float64, to 1e-6, since
    PyTorch clips by norm + 1e-6."""
    ours, theirs = small(dropout=0).double(), small(dropout=0).double()
    data = [{k: v.double() for k, v in batch.items()} for batch in islice(Rows(), 8)]
    settings = {"weight_decay": 0.3, "clip": 0.5, "warmup": 2, "steps": 8, "final": 0.2}
    steps = finished(ours, data, **settings)
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() > 1], "weight_decay": 0.3},
        {"params": [p for p in theirs.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), foreach=False)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, 1, total_iters=1),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6, eta_min=2e-3),
        ],
        milestones=[1],
    )
    for step, batch in zip(steps, data, strict=True):
        optimizer.zero_grad()
        loss = ((theirs(batch["x"]) - batch["y"]) ** 2 * batch["w"]).sum() / batch["w"].sum()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        assert step.learning_rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        schedule.step()
        assert step.loss == pytest.approx(loss.item(), rel=1e-6)
        assert step.grad_norm == pytest.approx(norm.item(), rel=1e-6)
    assert_near(weights(ours), weights(theirs), 1e-6)


@pytest.mark.parametrize("parts", [1, 2, 8, 32])
def test_accumulated_batches_are_the_whole_batch(parts: int) -> None:
    """Rows of unequal weight, so that a mean of means would be another number. float64, 1e-13."""
    data = [{k: v.double() for k, v in rows(32, seed).items()} for seed in range(3)]
    whole, cut = small(dropout=0).double(), small(dropout=0).double()
    expected = finished(whole, data, steps=3)
    pieces = [
        {name: value.chunk(parts)[i] for name, value in batch.items()}
        for batch in data
        for i in range(parts)
    ]
    steps = finished(cut, pieces, steps=3, accumulate=parts)
    assert_near(weights(cut), weights(whole), 1e-13)
    for ours, wanted in zip(steps, expected, strict=True):
        assert (ours.loss, ours.weight) == pytest.approx((wanted.loss, wanted.weight), rel=1e-12)
        assert ours.metrics == pytest.approx(wanted.metrics, rel=1e-12)


def test_the_run_ends_with_its_batches() -> None:
    """Five micro-batches by two: the last step has one."""
    data = list(islice(Rows(), 5))
    steps = finished(small(), data, accumulate=2, steps=100)
    assert [step.number for step in steps] == [1, 2, 3]
    assert steps[-1].weight == pytest.approx(float(data[-1]["w"].sum()))
    assert [step.last for step in finished(small(), steps=3)] == [False, False, True]


def test_no_batch_is_taken_before_its_step() -> None:
    """So batches may be made with the weights of the moment, as those of PPO are."""
    model, seen = small(), []

    def made() -> Any:
        for seed in range(3):
            seen.append(weights(model))
            yield rows(4, seed)

    after = [weights(model) for _ in train(model, squares, made(), TrainConfig(**PLAIN))]
    assert len(seen) == len(after) == 3
    for before, then in zip(seen[1:], after, strict=False):
        assert_same(before, then)


# -- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, {1: 1, 50: 1, 100: 1}),
        ({"schedule": "constant", "warmup": 10}, {1: 0.1, 5: 0.5, 10: 1, 11: 1}),
        ({"schedule": "linear", "final": 0}, {1: 0.99, 50: 0.5, 100: 0}),
        ({"schedule": "linear", "final": 0.5, "warmup": 20}, {20: 1, 60: 0.75, 100: 0.5}),
        ({"schedule": "cosine", "final": 0.1}, {50: 0.55, 100: 0.1}),
        ({"schedule": "cosine", "warmup": 40, "final": 0}, {40: 1, 60: 0.75, 80: 0.25, 100: 0}),
        ({"schedule": "wsd", "final": 0}, {80: 1, 85: 0.5, 100: 0}),
        ({"schedule": "wsd", "final": 0.2, "cooldown": 0.4}, {60: 1, 70: 0.6, 100: 0.2}),
        ({"schedule": "wsd", "cooldown": 0}, {1: 1, 100: 1}),
    ],
)
def test_schedules(settings: dict[str, Any], expected: dict[int, float]) -> None:
    config = TrainConfig(steps=100, **settings)
    assert {n: rate(config, n) for n in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"accumulate": 0}, "accumulate is between 1"),
        ({"learning_rate": -1}, "learning_rate is between 0"),
        ({"learning_rate": math.nan}, "learning_rate is between 0"),
        ({"ema": 1}, "ema is below 1"),
        ({"betas": (0.9, 1.0)}, "betas are"),
        ({"parallel": "fsdp"}, "start them with torchrun"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        finished(small(), **settings)


# -- optimizers -----------------------------------------------------------------------------------


def test_muon_moves_the_matrices_of_blocks_and_adam_all_else() -> None:
    """As two optimizers of PyTorch do, to 1e-6."""
    ours, theirs = small(dropout=0), small(dropout=0)
    finished(ours, optimizer="muon", weight_decay=0.1, clip=0, schedule="constant")
    matrices = [theirs.layers[0][0].weight, theirs.layers[1][0].weight]  # type: ignore[index]
    others = [theirs.enter.weight, theirs.leave.weight]
    vectors = [p for p in theirs.parameters() if p.dim() == 1]
    optimizers = [
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True),
        torch.optim.AdamW(vectors, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    for batch in islice(Rows(), 5):
        theirs.zero_grad()
        squares(theirs, batch).total.backward()
        scale = 1 / float(batch["w"].sum(dtype=torch.float64))
        for parameter in theirs.parameters():
            parameter.grad.mul_(scale)  # type: ignore[union-attr]
        for optimizer in optimizers:
            optimizer.step()
    assert_near(weights(ours), weights(theirs), 1e-6)


def test_only_what_wants_a_gradient_is_trained() -> None:
    model = small()
    model.enter.requires_grad_(False)
    before = weights(model)
    finished(model)
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "enter.weight" not in changed and "leave.weight" in changed
    with pytest.raises(UsageError, match="nothing to train"):
        finished(model.requires_grad_(False))


def test_blocks_are_what_is_repeated() -> None:
    model = small()
    assert blocks(model) == list(model.layers)
    assert blocks(nn.Sequential(model, nn.Linear(1, 1))) == list(model.layers)


# -- what goes wrong ------------------------------------------------------------------------------


def broken(numbers: set[int]) -> list[dict[str, Tensor]]:
    data = list(islice(Rows(), 40))
    for number in numbers:
        data[number - 1]["y"] = torch.full_like(data[number - 1]["y"], math.inf)
    return data


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    model, states, steps = small(), [], []
    for step in train(model, squares, broken({3}), TrainConfig(**PLAIN)):
        states.append(weights(model))
        steps.append(step)
    assert [step.skipped for step in steps] == [False, False, True, False, False]
    assert_same(states[2], states[1])
    assert "step 3 was skipped: its gradient is not finite" in steps[2].notes
    assert all(bool(torch.isfinite(w).all()) for w in states[-1].values())


def test_a_loss_that_stays_not_a_number_ends_the_run() -> None:
    with pytest.raises(TriviumError, match="not finite in 20 steps in a row, up to step 22"):
        finished(small(), broken(set(range(3, 41))), steps=40)


def test_a_batch_that_carries_no_loss_is_skipped() -> None:
    data = list(islice(Rows(), 3))
    data[1]["w"] = torch.zeros_like(data[1]["w"])
    steps = finished(small(), data)
    assert [step.skipped for step in steps] == [False, True, False]
    assert math.isnan(steps[1].loss)
    assert steps[1].notes == ("step 2 was skipped: nothing in its batch carries loss",)


# -- memory and precision -------------------------------------------------------------------------


def test_recomputed_activations_give_the_same_run() -> None:
    plain, recomputed = small(), small()
    finished(plain)
    finished(recomputed, checkpointing=True)
    assert_same(weights(recomputed), weights(plain))
    assert "forward" not in vars(recomputed.layers[0])  # the model is as it was


def test_products_in_bfloat16_leave_weights_in_float32() -> None:
    seen = []

    def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
        seen.append(model(batch["x"]).dtype)
        return squares(model, batch)

    model, plain = small(dropout=0), small(dropout=0)
    finished(model, loss=loss, precision="bfloat16")
    finished(plain)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_near(weights(model), weights(plain), 0.05)


# -- the caller -----------------------------------------------------------------------------------


def test_the_caller_draws_numbers_of_its_own() -> None:
    """Whatever it draws between two steps, the run and the caller's numbers stay the same."""
    quiet, noisy = small(), small()
    finished(quiet)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = [(torch.rand(1).item(), random.random(), np.random.rand()) for _ in range(5)]
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    drawn = []
    for _ in train(noisy, squares, Rows(), TrainConfig(**PLAIN)):
        drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))
        noisy.eval()
    assert drawn == expected
    assert_same(weights(noisy), weights(quiet))


def test_averaged_weights() -> None:
    """a ← d·a + (1−d)·w with d = min(0.9, (1+n)/(10+n)), by hand."""
    model = small()
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in train(model, squares, Rows(), TrainConfig(**PLAIN | {"ema": 0.9, "steps": 60})):
        decay = min(0.9, (1 + step.number) / (10 + step.number))
        for name, parameter in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
        own = weights(model)
        with step.averaged():
            assert_near(weights(model), expected, 1e-5)
        assert_same(weights(model), own)


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    model, states = small(), {}
    told = {1: 5.0, 2: 3.0, 3: 4.0, 4: math.nan, 5: 3.0, 6: 2.0, 7: 9.0}
    misses = {}
    config = TrainConfig(**PLAIN | {"steps": 7})
    for step in train(model, squares, Rows(), config, folder=tmp_path):
        states[step.number] = weights(model)
        misses[step.number] = step.judge(told[step.number])
    assert misses == {1: 0, 2: 0, 3: 1, 4: 2, 5: 3, 6: 0, 7: 1}
    best: Small = small(seed=9)
    assert restore_best(best, tmp_path) == 6
    assert_same(weights(best), states[6])
    assert len(list((tmp_path / "snapshots").glob("best-*"))) == 1
