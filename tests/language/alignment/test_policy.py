"""Advantages and policy losses against plain loops and closed forms."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.data import IGNORE
from trivium.language.adapters import add_lora
from trivium.language.alignment.advantages import (
    KLController,
    advantages,
    group_advantages,
    token_rewards,
    whitened,
)
from trivium.language.alignment.logprobs import said
from trivium.language.alignment.places import places
from trivium.language.alignment.policy import (
    ActorCritic,
    clipped,
    clipped_value,
    critic_of,
    grpo_loss,
    k3,
    ppo_loss,
)
from trivium.language.alignment.reference import Reference
from trivium.nn.lora import lora_layers, lora_parameters

SPANS = [(3, 9), (2, 15), (6, 7), (1, 16)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def real_of(spans: list[tuple[int, int]], length: int = 16) -> Tensor:
    columns = torch.arange(length)
    return torch.stack([(columns >= a) & (columns < b) for a, b in spans])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_sum_that_defines_it(gamma: float, lam: float) -> None:
    rewards, values, real = drawn(4, 16), drawn(4, 16, seed=1), real_of(SPANS)
    ours, returns = advantages(rewards, values, real, gamma=gamma, lam=lam)
    wanted = torch.zeros(4, 16)
    for row, (first, last) in enumerate(SPANS):
        delta = [
            rewards[row, t] + gamma * (values[row, t + 1] if t + 1 < last else 0) - values[row, t]
            for t in range(first, last)
        ]
        for t in range(first, last):
            wanted[row, t] = sum((gamma * lam) ** k * delta[t - first + k] for k in range(last - t))
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(returns, wanted + values * real)


def test_with_lambda_one_the_return_is_what_was_earned() -> None:
    rewards, values, real = drawn(4, 16), drawn(4, 16, seed=1), real_of(SPANS)
    _, returns = advantages(rewards, values, real, lam=1.0)
    for row, (first, last) in enumerate(SPANS):
        earned = rewards[row, first:last].flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(returns[row, first:last], earned)


def test_the_score_comes_with_the_last_token() -> None:
    kl, real = drawn(4, 16), real_of(SPANS)
    rewards = token_rewards(kl, torch.tensor([1.0, 2.0, 3.0, 4.0]), real, 0.1)
    expected = -0.1 * kl * real
    for row, (_, last) in enumerate(SPANS):
        expected[row, last - 1] += row + 1
    torch.testing.assert_close(rewards, expected)


def test_whitening_counts_real_tokens_only() -> None:
    values, real = 3 + 2 * drawn(4, 16), real_of(SPANS)
    white = whitened(values, real)
    assert float(white[real].mean()) == pytest.approx(0, abs=1e-6)
    assert float(white[real].var()) == pytest.approx(1, rel=1e-5)
    assert not white[~real].any()
    assert not whitened(values, real & False).any()


def test_advantages_in_a_group() -> None:
    scores = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0, 5.0, 5.0, 5.0])
    ours = group_advantages(scores, 4)
    assert ours[:4].tolist() == pytest.approx([0.866, -0.866, -0.866, 0.866], abs=1e-3)
    assert not ours[4:].any()  # all alike: nothing to learn
    assert group_advantages(scores, 4, scaled=False)[:2].tolist() == [0.5, -0.5]


def test_the_controller_pushes_towards_its_target() -> None:
    controller = KLController(0.1, target=6.0, horizon=1000)
    controller.update(60.0, 100)  # far above: the error is cut at 0.2
    assert controller.beta == pytest.approx(0.1 * 1.02)
    controller.update(5.7, 100)
    assert controller.beta == pytest.approx(0.1 * 1.02 * (1 - 0.05 * 0.1))
    fixed = KLController(0.1)
    fixed.update(60.0, 100)
    assert fixed.beta == 0.1


def test_clipping_takes_the_gradient_from_who_went_too_far() -> None:
    old = torch.zeros(4)
    now = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    gain = torch.tensor([1.0, 1.0, -1.0, -1.0])
    losses = clipped(now, old, gain, 0.2)
    ratio = now.detach().exp()
    wanted = -torch.minimum(ratio * gain, torch.tensor([1.2, 0.8, 1.2, 0.8]) * gain)
    torch.testing.assert_close(losses.detach(), wanted)
    (grad,) = torch.autograd.grad(losses.sum(), now)
    assert [bool(g) for g in grad] == [False, True, True, False]


def test_the_value_is_kept_near_too() -> None:
    ours = clipped_value(torch.tensor([2.0]), torch.tensor([0.0]), torch.tensor([3.0]), 0.5)
    assert float(ours) == 0.5 * (0.5 - 3) ** 2  # moving further would not count as better
    ours = clipped_value(torch.tensor([0.1]), torch.tensor([0.0]), torch.tensor([3.0]), 0.5)
    assert float(ours) == pytest.approx(0.5 * 2.9**2)


def test_k3_is_unbiased_and_never_negative() -> None:
    logits, other = drawn(50).double(), drawn(50, seed=1).double()
    p, q = torch.log_softmax(logits, 0), torch.log_softmax(other, 0)
    each = k3(p, q)
    assert (each >= 0).all()
    exact = (p.exp() * (p - q)).sum()
    assert float((p.exp() * each).sum()) == pytest.approx(float(exact))


# -- whole losses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False], ids=["value model", "head"])
def test_the_first_step_of_ppo_is_the_policy_gradient(
    own: bool, tiny: Callable[..., Any], replies: Callable[..., Any]
) -> None:
    """With log-probabilities of the same forward pass the ratio is exactly 1, nothing is clipped,
    and the gradient is that of −Σ A log π + c · ½ Σ (V − R)²."""
    model = ActorCritic(tiny(), tiny(seed=5) if own else None)
    torch.nn.init.normal_(model.value.weight)
    batch = replies(SPANS)
    real = batch["targets"] != IGNORE
    with torch.no_grad():
        at = places(model.policy, batch)
        old = said(model.policy, batch, at=at)
        batch["logprobs"] = torch.zeros(4, 16).masked_scatter(real, old.logprobs)
        batch["values"] = torch.zeros(4, 16).masked_scatter(real, model.values(batch, at))
    batch["advantages"], batch["returns"] = drawn(4, 16), drawn(4, 16, seed=1)
    loss = ppo_loss(model, batch, value_weight=0.3)
    assert loss.metrics["drift"] == 0 and loss.metrics["clipped"] == 0
    assert float(loss.metrics["policy_loss"]) == -float(batch["advantages"][real].sum())
    assert loss.weight == real.sum()
    names = [n for n, _ in model.named_parameters()]
    ours = torch.autograd.grad(loss.total, list(model.parameters()))
    log_p = torch.log_softmax(model.policy(batch["ids"]), -1)
    picked = log_p.gather(2, batch["targets"].clamp(min=0)[:, :, None])[:, :, 0][real]
    features = (model.critic or model.policy).features(batch["ids"])[real]
    values = model.value(features)[:, 0]
    plain = -(batch["advantages"][real] * picked).sum()
    plain = plain + 0.3 * 0.5 * ((values - batch["returns"][real]) ** 2).sum()
    theirs = torch.autograd.grad(plain, list(model.parameters()))
    for name, mine, wanted in zip(names, ours, theirs, strict=True):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(mine, wanted, rtol=0, atol=2e-5 * scale, msg=name)


@pytest.mark.parametrize("lora", [True, False])
def test_the_value_model_begins_as_the_policy_and_leaves_it_alone(
    lora: bool, tiny: Callable[..., Any], replies: Callable[..., Any]
) -> None:
    policy, batch = tiny(), replies(SPANS)
    if lora:
        add_lora(policy, 4)
        for _, layer in lora_layers(policy):
            torch.nn.init.normal_(layer.changes[0].b)
    critic = critic_of(policy)
    before = policy.features(batch["ids"])
    assert torch.equal(critic.features(batch["ids"]), before)
    ours, theirs = dict(policy.named_parameters()), dict(critic.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (theirs[name] is tensor) == (not tensor.requires_grad), name
    with torch.no_grad():
        for tensor in theirs.values():
            if tensor.requires_grad:
                tensor.add_(1)
    assert torch.equal(policy.features(batch["ids"]), before)
    assert not torch.equal(critic.features(batch["ids"]), before)


def test_grpo_averages_tokens_within_answers(
    tiny: Callable[..., Any], replies: Callable[..., Any]
) -> None:
    model, other = tiny(), tiny(seed=3)
    batch = replies(SPANS)
    real = batch["targets"] != IGNORE
    for name, source in (("logprobs", tiny(seed=2)), ("reference", other)):
        with torch.no_grad():
            batch[name] = torch.zeros(4, 16).masked_scatter(real, said(source, batch).logprobs)
    batch["advantages"] = torch.tensor([1.0, -1.0, 0.5, -0.5])
    loss = grpo_loss(model, batch, beta=0.1)
    wanted = 0.0
    log_p = torch.log_softmax(model(batch["ids"]), -1)
    for row in range(4):
        at = real[row]
        picked = log_p[row, at].gather(1, batch["targets"][row, at, None])[:, 0]
        old, reference = batch["logprobs"][row, at], batch["reference"][row, at]
        a = batch["advantages"][row]
        ratio = (picked - old).exp()
        tokens = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
        difference = reference - picked
        wanted = wanted + (tokens + 0.1 * (difference.exp() - difference - 1)).mean()
    torch.testing.assert_close(loss.total, wanted)
    assert loss.weight == 4
    assert 0 < loss.metrics["clipped"] <= 4


# -- the reference --------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [True, False])
def test_the_reference_stays_what_the_policy_was(
    tiny: Callable[..., Any], replies: Callable[..., Any], lora: bool
) -> None:
    model, batch = tiny(), replies(SPANS)
    with torch.no_grad():
        before = said(model, batch).logprobs
    if lora:
        add_lora(model, 4)
    reference = Reference(model)
    parameters = lora_parameters(model) if lora else list(model.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn_like(parameter))
    with reference as frozen:
        then = said(frozen, batch).logprobs
    assert not then.requires_grad
    torch.testing.assert_close(then, before, rtol=0, atol=0)
    now = said(model, batch).logprobs  # and the policy is itself again
    assert now.requires_grad and (now - before).abs().max() > 1e-3
    assert (frozen is model) == lora
