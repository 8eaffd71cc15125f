"""Requests that need no tool: questions, texts to write, thanks, small talk, advice.

Many are near a tool and yet need none: what a folder is, why a price is high, two numbers in a
question about the world. The untrained model itself gives the answers that are learnt.
"""

import random

from trivium.recipes.tool_requests.patterns import careless, filled, is_chinese
from trivium.recipes.tool_requests.tables import sentences, words


def _slots(rng: random.Random) -> dict[str, str]:
    topic, other = rng.sample(words("topics"), 2)
    return {
        "country": rng.choice(words("countries")),
        "topic": topic,
        "topic2": other,
        "person": rng.choice(words("persons")),
        "thing": rng.choice(words("themes")),
        "occasion": rng.choice(words("occasions")),
        "pair": rng.choice(words("pairs")),
        "skill": rng.choice(words("skills")),
        "animal": rng.choice(words("pets")),
        "word": rng.choice(words("adjectives")),
        "short": rng.choice(words("blunt")),
        "translated": rng.choice(words("phrases")),
        "language": rng.choice(words("spoken")),
        "acronym": rng.choice(words("acronyms")),
        "bang": rng.choice(("", ".", "!")),
        "age": str(rng.randint(18, 80)),
        "few": str(rng.randint(2, 9)),
    }


def talk(rng: random.Random) -> str:
    """A request that needs no tool."""
    return _written(rng.choice(sentences("talk" if rng.random() < 0.5 else "talk_near_tools")), rng)


def follow_up(rng: random.Random) -> str:
    """What somebody says to an answer."""
    return _written(rng.choice(sentences("talk_follow_ups")), rng)


def _written(pattern: str, rng: random.Random) -> str:
    text = filled(pattern, rng, _slots(rng))
    return (
        text
        if is_chinese(text)
        else careless(text[:1].upper() + text[1:] if rng.random() < 0.8 else text, rng)
    )
