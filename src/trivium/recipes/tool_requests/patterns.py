"""Sentences from patterns.

    [a|b|c]         one of these, each as a pattern of its own; [a|] may be nothing
    {slot}          a value; {Slot} with a capital first
    <buy/buys>      the form that goes with the subject, {who}: the second for she, he, it

Everything is drawn from one `random.Random`, so that a seed gives the same sentences everywhere.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

_INNERMOST = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_FORMS = re.compile(r"<([^<>/]*)/([^<>/]*)>")


@dataclass(frozen=True)
class Subject:
    """Who a story is about: "my sister", "she", "her"; `third` if the verb takes an s."""

    name: str
    pronoun: str
    possessive: str
    third: bool

    @property
    def slots(self) -> dict[str, str]:
        return {"who": self.name, "they": self.pronoun, "their": self.possessive}


def is_chinese(text: str) -> bool:
    return any("一" <= char <= "鿿" for char in text)


def chosen(pattern: str, rng: random.Random) -> str:
    """The pattern with its choices made."""
    while found := _INNERMOST.search(pattern):
        pick = rng.choice(found[1].split("|"))
        pattern = pattern[: found.start()] + pick + pattern[found.end() :]
    return pattern


def filled(
    pattern: str, rng: random.Random, slots: Mapping[str, str], subject: Subject | None = None
) -> str:
    """A sentence of the pattern."""
    known = dict(slots) | (subject.slots if subject else {})

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name in known:
            return known[name]
        text = known[name[0].lower() + name[1:]]
        return text[:1].upper() + text[1:]

    def form(found: re.Match[str]) -> str:
        return found[2] if subject and subject.third else found[1]

    text = _FORMS.sub(form, chosen(pattern, rng))
    text = " ".join(_SLOT.sub(value, text).split(" "))
    return re.sub(r"  +", " ", text).strip()


def careless(text: str, rng: random.Random) -> str:
    """As people type in a hurry: sometimes all small letters, no full stop, a word short."""
    roll = rng.random()
    if roll < 0.08:
        text = text[:1].lower() + text[1:]
    elif roll < 0.13:
        text = text.lower()
    if rng.random() < 0.08:
        text = text.rstrip(".?!。？")
    if rng.random() < 0.05:
        text = text.replace("'s", "s").replace("'t", "t")
    return text


def polite(text: str, rng: random.Random) -> str:
    """Now and then with words that say nothing."""
    roll = rng.random()
    if roll < 0.8:
        return text
    if roll < 0.92:
        return rng.choice(BEFORE) + " " + text
    return text + " " + rng.choice(BEHIND)


BEFORE = (
    "Hi!",
    "Hello,",
    "Please help:",
    "Quick question:",
    "ok,",
    "Hey,",
    "Hmm.",
    "One more thing:",
    "Sorry to bother you.",
    "I am bad at this.",
    "Maths is not my strong side.",
    "Could you help me with this?",
    "I was wondering:",
    "Here is my homework:",
    "My daughter asked me this:",
    "I am planning something.",
    "Let me think.",
    "Good morning!",
    "So:",
    "Now this:",
    "Hello! I have a small question.",
    "We were talking about this at lunch.",
    "Can you work this out for me?",
    "Please be quick:",
    "A riddle:",
)
BEHIND = (
    "Thanks!",
    "Please.",
    "Thank you.",
    "pls",
    "I need this for tomorrow.",
    "Can you tell me?",
    "Just the number please.",
    "I never get this right.",
    "What do you say?",
    "Help!",
    "No hurry.",
)
