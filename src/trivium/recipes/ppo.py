"""Learn from rewards by proximal policy optimisation, the algorithm of RLHF.

Four models (Ziegler et al. 2019; Ouyang et al. 2022): the policy that answers; the reference, which
is the policy as it was, from which it may not go far; the reward model; and the value model, which
says of every place in an answer what reward is to come. With an adapter, the policy, the reference
and the value model share their frozen weights.

    r_t = −β log π/π_ref, and the reward at the last token;  A by GAE;  clipped ratios
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from trivium.language.alignment.advantages import KLController
from trivium.language.alignment.experience import PPOExperience, Reward
from trivium.language.alignment.policy import ActorCritic, critic_of, ppo_loss
from trivium.language.alignment.reference import Reference
from trivium.recipes.assistant import Assistant
from trivium.recipes.from_rewards import Learner, PolicyConfig, run_policy


@dataclass(frozen=True)
class Config(PolicyConfig):
    prompts: int = 64  # that are answered in a round
    answers: int = 1  # to each of them
    minibatch: int = 32  # answers of a step
    epochs: int = 2  # how often a round is learnt from
    critic: Literal["model", "head"] = "model"  # the value: a model, or a head on the policy
    kl_weight: float = 0.1  # β at first
    kl_target: float = 6.0  # nats of an answer, which β is steered to; 0: β stays
    kl_horizon: float = 200.0  # answers; the shorter, the faster β changes
    gamma: float = 1.0  # discount of later rewards
    lam: float = 0.95  # λ of GAE
    value_clip: float = 0.2  # how far a value may move for gain
    value_weight: float = 0.1  # of its loss
    entropy_weight: float = 0.0  # of the entropy, which is a gain


def main(config: Config) -> dict[str, Any]:
    def make(assistant: Assistant, reference: Reference, reward: Reward) -> Learner:
        own = config.critic == "model"
        model = ActorCritic(assistant.model, critic_of(assistant.model) if own else None)
        controller = KLController(config.kl_weight, config.kl_target, config.kl_horizon)
        experience = PPOExperience(
            model,
            reference,
            reward,
            controller,
            gamma=config.gamma,
            lam=config.lam,
            filler=assistant.filler,
            temperature=config.temperature,
        )
        loss = partial(
            ppo_loss,
            clip=config.clip,
            value_clip=config.value_clip,
            value_weight=config.value_weight,
            entropy_weight=config.entropy_weight,
            temperature=config.temperature,
        )
        return Learner(model, loss, experience)

    return run_policy(config, make, (1e-4, 1e-6, 2e-4))
