"""What is written to a terminal, where a model's text must not act."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivium.cli.render import Screen, printable
from trivium.llmos.messages import Answer, TextDelta, ToolCall, ToolResult


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 你好 👋 é\ttab\n", "plain 你好 👋 é\ttab\n"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;https://evil.example\x07link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;ZXZpbA==\x07", ""),
        ("\x1b]0;title\x9c.", "."),
        ("\x1bPq#0\x1b\\after", "after"),
        ("\x1bc\x1b(Bok", "ok"),
        ("\x9b2Jok", "ok"),
        ("safe\roverwritten\b\x07", "safeoverwritten"),
        ("a\u202eb\u2066c\U000e0041", "abc"),
        ("\x1b]8;;unfinished", "]8;;unfinished"),
        ("family 👨\u200d👩\u200d👧", "family 👨\u200d👩\u200d👧"),
    ],
)
def test_nothing_acts_on_the_terminal(
    text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printable(text) == shown

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for cut in range(len(text) + 1):
        out = Terminal()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        screen = Screen()
        screen.show(TextDelta(text[:cut]))
        screen.show(TextDelta(text[cut:]))
        screen.show(Answer(text))
        assert out.getvalue().removesuffix("\n") == shown.removesuffix("\n")


@given(st.text(st.characters() | st.sampled_from("\x1b[]\\;mP\x07\x9b0"), max_size=30))
def test_no_control_character_is_left(text: str) -> None:
    shown = printable(text)
    assert not any(c < " " and c not in "\n\t" or "\x7f" <= c <= "\x9f" for c in shown)


def test_notes_do_not_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().note("in \x1b]0;title\x07folder\n\x1b[31mred")
    assert capsys.readouterr().err == "in folder\nred\n"


def test_results_are_abridged(capsys: pytest.CaptureFixture[str]) -> None:
    call = ToolCall("c", "to\x1b[31mol", '{"text": "' + "x" * 500 + '"}')
    screen = Screen()
    screen.show(call)
    screen.show(ToolResult(call, "\x1b[2Jline\n" * 500))
    screen.show(ToolCall("c", "tool", "{broken"))
    shown = capsys.readouterr().err
    assert len(shown) < 500 and "\x1b" not in shown
    assert "… 492 more lines" in shown and "→ tool(" in shown
