"""What a person is shown before a tool acts: the effective call, with nothing hidden in it.

The text is made from the arguments the tool will get, after parsing. Characters that do not show,
or that move others about (controls, bidirectional overrides, zero-width and tag characters, odd
spaces), are written as ⟨U+202E⟩; a real ⟨ is escaped the same way, so none can be imitated.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trivium.llmos.tools import Effect, Tool

# Letters and marks by Unicode's tables, yet blank or without a shape of their own on the screen.
_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
    + "".join(map(chr, [*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
)


def visible(text: str) -> str:
    """`text` in which each character that would not show as itself is written ⟨U+XXXX⟩."""
    return "".join(
        f"⟨U+{ord(character):04X}⟩" if _hides(character) else character for character in text
    )


def _hides(character: str) -> bool:
    if character == " " or " " < character < "\x7f":
        return False
    # C*: controls, formats, surrogates, private, unassigned. Z*: separators other than the space.
    return unicodedata.category(character)[0] in "CZ" or character in _INVISIBLE or character == "⟨"


def canonical(arguments: Mapping[str, Any]) -> str:
    """The one JSON text of `arguments`. ValueError where they are not JSON or not Unicode text."""
    text = json.dumps(
        arguments, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    text.encode()  # UnicodeEncodeError is a ValueError: half a surrogate pair is not a character
    return text


def _shown(name: str, value: Any) -> str:
    """One argument; the lines of a longer text each behind a bar, so that none passes for ours."""
    if isinstance(value, str) and "\n" in value:
        lines = "".join(f"\n    │ {visible(line)}" for line in value.split("\n"))
        return f"  {visible(name)}:{lines}"
    return f"  {visible(name)}: {visible(json.dumps(value, ensure_ascii=False))}"


@dataclass(frozen=True)
class Request:
    """A call that waits for a yes or a no. `sha256` binds the answer to this very call."""

    tool: str
    effect: Effect
    text: str
    sources: tuple[str, ...]
    reason: str
    sha256: str

    @classmethod
    def of(
        cls, tool: Tool, arguments: str, sources: frozenset[str], reason: str, number: int
    ) -> "Request":
        """The request to run `tool` on canonical `arguments`; `number` makes each one unique."""
        lines = [_shown(name, value) for name, value in json.loads(arguments).items()]
        bound = json.dumps([number, tool.name, tool.effect, arguments])
        return cls(
            tool.name,
            tool.effect,
            "\n".join([tool.name, *lines]),
            tuple(sorted(visible(source) for source in sources)),
            reason,
            hashlib.sha256(bound.encode()).hexdigest(),
        )
