"""The question on a terminal of its own, as a person sees and answers it."""

import os
import pty
import sys
import time
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "notes.txt").write_text("the notes\n")
    return work


def on_terminal(script: str, *steps: tuple[bytes, bytes]) -> tuple[int, str]:
    """Run `script` with a terminal of its own; wait for each text, then type the answer to it."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", script])
    shown = b""
    waiting = list(steps)
    while True:
        try:
            shown += os.read(terminal, 4096)
        except OSError:
            break
        while waiting and waiting[0][0] in shown:
            time.sleep(0.05)
            os.write(terminal, waiting.pop(0)[1])
    os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert not waiting, f"{waiting} was not reached in {shown.decode()}"
    return code, shown.decode()


ASKING = """
import time
from trivium.cli import main, session
from trivium.llmos.chat_model import ScriptedModel
from trivium.llmos.messages import ToolCall
read = ToolCall("c1", "read_file", '{"path": "notes.txt"}')
write = ToolCall("c2", "write_file", '{"path": "out.txt", "text": "a\\u202eb\\\\nc"}')
def slow(messages):
    time.sleep(0.5)
    return write
model = ScriptedModel(read, slow, "Done.")
session.open_model = lambda name, settings: model
main(["run", "copy"])
"""


@pytest.mark.parametrize(
    ("typed", "written"), [(b"y\n", True), (b"n\n", False), (b"\n", False), (b"\x04", False)]
)
def test_a_person_is_asked(folder: Path, typed: bytes, written: bool) -> None:
    code, shown = on_terminal(ASKING, (b"[y/N]", typed))
    assert code == 0 and "Done." in shown
    assert (folder / "out.txt").exists() is written
    assert "⟨U+202E⟩" in shown and "\u202e" not in shown
    assert "file:notes.txt" in shown


def test_what_was_typed_before_the_question_is_no_answer(folder: Path) -> None:
    steps = ((b"read_file", b"y\n"), (b"[y/N]", b"n\n"))
    code, _ = on_terminal(ASKING, *steps)
    assert code == 0 and not (folder / "out.txt").exists()


def test_ctrl_c_at_the_question(folder: Path) -> None:
    code, shown = on_terminal(ASKING, (b"[y/N]", b"\x03"))
    assert code == 130 and "Traceback" not in shown
    assert not (folder / "out.txt").exists()
