"""Answers are held against what the tools gave."""

import pytest

from trivium.llmos.faithful import states, unadmitted, uncounted
from trivium.llmos.messages import Message

EFFECTS = {"calculate": "none", "read_file": "read"}


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("That is 351 euros.", "351", True),
        ("That is 1,234.5 km.", "1234.5", True),
        ("It is 351.0", "351", True),
        ("about 6.78 litres", "6.781045751633986…", True),
        ("about 6.79 litres", "6.781045751633986…", False),
        ("about 7 litres", "6.781045751633986…", False),
        ("That is 315.", "351", False),
        ("-4 degrees", "-4", True),
        ("4 degrees", "-4", False),
        ("A Tuesday.", "Tuesday", True),
        ("A Monday.", "Tuesday", False),
    ],
)
def test_what_a_text_states(text: str, value: str, expected: bool) -> None:
    assert states(text, value) is expected


@pytest.mark.parametrize(
    ("name", "result", "answer", "added"),
    [
        ("calculate", "351", "That is 351 euros.", ""),
        ("calculate", "351", "That is 315 euros.", "\n\ncalculate: 351"),
        ("calculate", "2125 (15% of 2500 is 375)", "You pay 2,125.", ""),
        (
            "calculate",
            "2125 (15% of 2500 is 375)",
            "375",
            "\n\ncalculate: 2125 (15% of 2500 is 375)",
        ),
        ("calculate", "3.333333333333333… (10/3)", "about 3.33", ""),
        ("calculate", "error: the expression is empty", "I could not compute that.", ""),
        ("calculate", "true", "Yes, it is.", ""),
        ("calculate", "7" * 90, "a large number", ""),
        ("read_file", "351", "It is empty.", ""),
        (None, "351", "It is empty.", ""),
    ],
)
def test_a_value_that_was_computed_is_said(
    name: str | None, result: str, answer: str, added: str
) -> None:
    assert uncounted([Message("tool", result, name=name)], EFFECTS, answer) == added


def test_the_last_value_counts() -> None:
    results = [Message("tool", value, name="calculate") for value in ("12", "24")]
    assert uncounted(results, EFFECTS, "It is 24.") == ""
    assert uncounted(results, EFFECTS, "It is 12.") == "\n\ncalculate: 24"
    assert uncounted([], EFFECTS, "Hello.") == ""


REFUSED = "error: write_file was not run: it changes files, and no person approved the call"


@pytest.mark.parametrize(
    ("results", "answer", "added"),
    [
        ([REFUSED], "I saved it in todo.txt.", f"\n\nThat did not work: {REFUSED[7:]}"),
        ([REFUSED], "It was not saved.", ""),
        ([REFUSED], "I couldn't save it.", ""),
        ([REFUSED], "没有保存。", ""),
        ([REFUSED, "wrote todo.txt (8 B)"], "I saved it in todo.txt.", ""),
        (["wrote todo.txt (8 B)"], "I saved it in todo.txt.", ""),
        ([], "Hello.", ""),
    ],
)
def test_a_failure_is_admitted(results: list[str], answer: str, added: str) -> None:
    messages = [Message("tool", text, name="write_file") for text in results]
    assert unadmitted(messages, answer) == added
