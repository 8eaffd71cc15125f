"""Losses on rankings against closed forms and plain loops."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.language.alignment.preferences import (
    bradley_terry,
    identity_preference,
    implicit_rewards,
    pairs,
    plackett_luce,
)
from trivium.language.alignment.reward import (
    RewardModel,
    calibration,
    margins_of,
    reward_loss,
)

GROUPS = [0, 0, 1, 1, 1, 1, 2, 2, 2, -1]
RANKS = [0, 1, 0, 1, 2, 3, 0, 1, 1, 0]


def tensors(*lists: list[Any]) -> list[Tensor]:
    return [torch.tensor(values) for values in lists]


def test_all_pairs_of_a_prompt_and_no_others() -> None:
    found = pairs(*tensors(GROUPS, RANKS))
    wanted = [
        (i, j)
        for i, j in itertools.product(range(10), repeat=2)
        if GROUPS[i] == GROUPS[j] >= 0 and RANKS[i] < RANKS[j]
    ]
    assert list(zip(found.better.tolist(), found.worse.tolist(), strict=True)) == wanted
    assert len(wanted) == 1 + 6 + 2
    assert found.weight.tolist() == pytest.approx([1] + [1 / 6] * 6 + [1 / 2] * 2)


def test_bradley_terry_is_the_logarithm_of_its_probability() -> None:
    a, b = 1.3, -0.4
    p = math.exp(a) / (math.exp(a) + math.exp(b))
    margin = torch.tensor([a - b])
    assert float(bradley_terry(margin)) == pytest.approx(-math.log(p))
    smoothed = -0.9 * math.log(p) - 0.1 * math.log(1 - p)
    assert float(bradley_terry(margin, 0.1)) == pytest.approx(smoothed)
    assert torch.isfinite(bradley_terry(torch.tensor([-1e4, 1e4]))).all()


def test_the_probabilities_of_all_rankings_add_up_to_one() -> None:
    scores = torch.tensor([0.3, -1.2, 2.0, 0.7])
    total = 0.0
    for order in itertools.permutations(range(4)):
        p, left = 1.0, set(range(4))
        for item in order:  # the definition: drawn without putting back
            p *= math.exp(scores[item]) / sum(math.exp(scores[j]) for j in left)
            left.remove(item)
        ranks = torch.tensor([order.index(i) for i in range(4)])
        ours = plackett_luce(scores, torch.zeros(4, dtype=torch.long), ranks).sum()
        assert float(ours) == pytest.approx(-math.log(p), rel=1e-5)
        total += float((-ours).exp())
    assert total == pytest.approx(1, rel=1e-5)


def test_plackett_luce_keeps_prompts_and_padding_apart() -> None:
    groups, ranks = tensors(GROUPS, RANKS)
    scores = torch.randn(10, generator=torch.Generator().manual_seed(0), requires_grad=True)
    losses = plackett_luce(scores, groups, ranks)
    (grad,) = torch.autograd.grad(losses.sum(), scores)
    assert torch.isfinite(grad).all() and grad[9] == losses[9] == 0
    for group in range(3):
        at = groups == group
        alone = plackett_luce(scores[at], groups[at], ranks[at])
        torch.testing.assert_close(losses[at], alone)
    # Of two replies it is Bradley–Terry; those that share the last place are in no order.
    torch.testing.assert_close(losses[:2].sum(), bradley_terry(scores[0] - scores[1]))
    torch.testing.assert_close(losses[6:9].sum(), torch.logsumexp(scores[6:9], 0) - scores[6])


def test_ipo_and_implicit_rewards() -> None:
    r = implicit_rewards(torch.tensor([-5.0, -8.0]), torch.tensor([-6.0, -7.0]), 0.1)
    assert r.tolist() == pytest.approx([0.1, -0.1])
    # h = 2, and 1 / 2β = 5
    assert float(identity_preference(r[0] - r[1], 0.1)) == pytest.approx((2 - 5) ** 2, rel=1e-4)


def test_the_reward_of_a_reply_is_that_of_its_row_alone(
    tiny: Callable[..., Any], replies: Callable[..., Any]
) -> None:
    """Padding on the right changes nothing, and the last token is where it is read."""
    model = RewardModel.of(tiny())
    batch = replies([(3, 9), (3, 14), (5, 16)])
    rewards = model(batch["ids"], batch["ends"])
    for row, end in enumerate(batch["ends"].tolist()):
        alone = batch["ids"][row : row + 1, : end + 1]
        torch.testing.assert_close(rewards[row : row + 1], model.scores(alone)[:, -1])


@pytest.mark.parametrize("ranking", ["pairs", "list"])
def test_the_loss_of_a_batch_is_the_sum_of_its_prompts(
    tiny: Callable[..., Any], replies: Callable[..., Any], ranking: Any
) -> None:
    model = RewardModel.of(tiny())
    batch = replies([(4, 8 + i) for i in range(6)], [0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 2, 2])
    loss = reward_loss(model, batch, ranking=ranking)
    assert loss.weight == pytest.approx(2)
    r = model(batch["ids"], batch["ends"])
    pair = bradley_terry(r[0] - r[1])
    if ranking == "pairs":
        ordered = [(2, 3), (2, 4), (2, 5), (3, 4), (3, 5)]
        wanted = pair + sum(bradley_terry(r[i] - r[j]) for i, j in ordered) / 5
    else:
        first = torch.logsumexp(r[2:], 0) - r[2]
        wanted = pair + first + torch.logsumexp(r[3:], 0) - r[3]
    torch.testing.assert_close(loss.total, wanted)
    margins = margins_of(model, batch)
    assert len(margins) == 6 and margins[0] == pytest.approx(
        float((r[0] - r[1]).detach()), rel=1e-5
    )


def test_calibration_of_a_judge_that_is_right_as_often_as_it_says() -> None:
    """Margins drawn from the model itself: the error is that of sampling only. A judge that is
    three times as sure is found out."""
    rng = torch.Generator().manual_seed(0)
    strength = 2 * torch.randn(20000, generator=rng)
    right = torch.rand(20000, generator=rng) < torch.sigmoid(strength)
    margins = torch.where(right, strength, -strength)
    honest, sure = calibration(margins), calibration(3 * margins)
    assert honest.error < 0.02 < 0.1 < sure.error
    assert sum(count for *_, count in honest.bins) == 20000
    assert all(0.5 <= said <= 1 for said, *_ in honest.bins)
    assert calibration(torch.zeros(4)).bins == ((0.5, 0.5, 4),)
