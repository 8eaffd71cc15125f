"""How much better an answer's tokens were than expected.

    GAE (Schulman et al. 2016)   A_t = Σ_k (γλ)^k δ_{t+k},   δ_t = r_t + γ V_{t+1} − V_t
    GRPO (Shao et al. 2024)      A = (r − mean of the group) / standard deviation of the group

R answers, T tokens; `real` (R, T) is True at the tokens of an answer, which are in one piece.
"""

import torch
from torch import Tensor


def token_rewards(kl: Tensor, scores: Tensor, real: Tensor, coefficient: float) -> Tensor:
    """r_t (R, T): −β (log π − log π_ref) at every token, and the answer's score (R,) at its last
    (Ziegler et al. 2019, eq. 2). kl: (R, T), that difference."""
    rewards = -coefficient * kl * real
    columns = torch.arange(real.shape[1], device=real.device)
    last = (columns * real).argmax(1)
    rewards[torch.arange(len(rewards), device=real.device), last] += scores * real.any(1)
    return rewards


def advantages(
    rewards: Tensor, values: Tensor, real: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """GAE's advantages and the returns A + V, each (R, T) and 0 outside the answers. The value
    behind an answer's last token is 0."""
    values = values * real
    result = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])  # the advantage of the next token
    ahead = torch.zeros_like(following)  # and its value
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * ahead - values[:, t]
        here = delta + gamma * lam * following
        inside = real[:, t]
        result[:, t] = torch.where(inside, here, 0.0)
        following = torch.where(inside, here, 0.0)
        ahead = torch.where(inside, values[:, t], 0.0)
    return result, result + values


def whitened(values: Tensor, real: Tensor) -> Tensor:
    """Shifted to mean 0 and scaled to variance 1 over the real tokens; 0 elsewhere."""
    inside = values[real]
    if len(inside) < 2:
        return torch.zeros_like(values)
    scaled = (values - inside.mean()) * torch.rsqrt(inside.var() + 1e-8)
    return torch.where(real, scaled, 0.0)


def group_advantages(scores: Tensor, size: int, *, scaled: bool = True) -> Tensor:
    """Of answers (R,) that come in groups of `size` to the same prompt, one after the other.

    scaled: divided by the deviation of the group; Liu et al. 2025 leave that out, since it gives
        prompts that are nearly always, or nearly never, answered rightly more weight
    """
    groups = scores.view(-1, size)
    centred = groups - groups.mean(1, keepdim=True)
    if scaled:
        centred = centred / (groups.std(1, keepdim=True) + 1e-4)
    return centred.flatten()


class KLController:
    """β that keeps the divergence near a target (Ziegler et al. 2019, section 2.2).

        β ← β (1 + clip(KL / target − 1, −0.2, 0.2) · n / horizon)

    target None: β stays as it is.
    """

    def __init__(self, beta: float, target: float | None = None, horizon: float = 10000) -> None:
        self.beta, self.target, self.horizon = beta, target, horizon

    def update(self, kl: float, count: int) -> None:
        """kl: of an answer, on average over `count` of them."""
        if self.target:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.beta *= 1 + error * count / self.horizon
