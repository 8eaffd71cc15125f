"""Learn from rewards by comparing answers: group-relative policy optimisation.

    A = (r − mean) / deviation of the answers to the same prompt        (Shao et al. 2024)

No value model: what an answer is worth is told by the others. With a reward that a program can
tell, a model improves itself: it tries, and learns from what turned out right. The default: sums.
Right is an answer whose last number is the sum, and that comes to an end.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from trivium.language.alignment.experience import GRPOExperience, Reward
from trivium.language.alignment.policy import grpo_loss
from trivium.language.alignment.reference import Reference
from trivium.recipes.assistant import Assistant
from trivium.recipes.from_rewards import Learner, PolicyConfig, run_policy


@dataclass(frozen=True)
class Config(PolicyConfig):
    beta: float = 0.02  # weight of the divergence from the model as it was
    scaled: bool = True  # advantages are divided by the deviation of their group


def main(config: Config) -> dict[str, Any]:
    def make(assistant: Assistant, reference: Reference, reward: Reward) -> Learner:
        experience = GRPOExperience(
            assistant.model,
            reference,
            reward,
            scaled=config.scaled,
            filler=assistant.filler,
            temperature=config.temperature,
        )
        loss = partial(
            grpo_loss, clip=config.clip, beta=config.beta, temperature=config.temperature
        )
        return Learner(assistant.model, loss, experience)

    return run_policy(config, make, (1e-4, 1e-6, 2e-4))
