import os
import pty
import select
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from trivium.cli import main, session
from trivium.cli.chat import COMMANDS
from trivium.cli.lines import is_open, unquoted
from trivium.errors import NotFound, TriviumError
from trivium.llmos import conversation
from trivium.llmos.chat_model import ScriptedModel
from trivium.llmos.conversation import Conversation
from trivium.llmos.messages import Finish, Message, TextDelta, ToolCall, Usage

WRITE = ToolCall("c2", "write_file", '{"path": "out.txt", "text": "new"}')


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ScriptedModel]:
    def script(*replies: Any, **attributes: Any) -> ScriptedModel:
        model = ScriptedModel(*replies)
        vars(model).update(attributes)
        monkeypatch.setattr(session, "open_model", lambda name, settings: model)
        return model

    return script


def chat(*lines: str, options: tuple[str, ...] = ()) -> Result:
    return CliRunner().invoke(
        main, ["chat", *options], input="".join(f"{line}\n" for line in lines)
    )


def asked(model: ScriptedModel) -> list[str]:
    return [call[-1].text for call in model.calls]


def talk(number: int = 0) -> Conversation:
    with Conversation.open(conversation.stored()[number].path) as talk:
        return talk


# A pipe


def test_each_line_is_a_message(play: Callable[..., ScriptedModel]) -> None:
    model = play("One.", "Two.")
    result = chat("first", "", "  ", "second 你好")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "One.\nTwo.\n", "")
    assert asked(model) == ["first", "second 你好"]
    assert [message.text for message in model.calls[1]] == ["first", "One.", "second 你好"]


def test_the_last_line_needs_no_end(play: Callable[..., ScriptedModel]) -> None:
    model = play("One.")
    CliRunner().invoke(main, ["chat"], input="first")
    assert asked(model) == ["first"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plain", "plain"),
        ('"""one line"""', "one line"),
        ('"""\nline 1\n\n  line 2\n"""', "line 1\n\n  line 2"),
        ('"""line 1\nline 2"""', "line 1\nline 2"),
        ('say """this"""', 'say """this"""'),
    ],
)
def test_messages_of_several_lines(
    play: Callable[..., ScriptedModel], text: str, message: str
) -> None:
    model = play("ok")
    assert chat(text).exit_code == 0
    assert asked(model) == [message]
    assert unquoted(text) == message
    assert not is_open(text) and is_open('"""' + text.strip('"'))


def test_a_message_that_does_not_end(play: Callable[..., ScriptedModel]) -> None:
    play()
    result = chat('"""', "more")
    assert result.exit_code == 2
    assert "stdin ends within a message" in result.stderr


@pytest.mark.parametrize(
    "line, message",
    [(b"na\xefve", "is not UTF-8 text"), (b"a\0b", "is binary, not text")],
)
def test_not_text(play: Callable[..., ScriptedModel], line: bytes, message: str) -> None:
    model = play("ok")
    result = CliRunner().invoke(main, ["chat"], input=b"one\n" + line + b"\n")
    assert result.exit_code == 2
    assert result.stderr == f"trivium: stdin, line 2, {message}\n"
    assert asked(model) == ["one"]


def test_a_failure_does_not_end_the_rest(play: Callable[..., ScriptedModel]) -> None:
    def fail(messages: Any) -> Any:
        raise NotFound("no such model")

    play(fail, "Two.")
    result = chat("first", "second")
    assert (result.exit_code, result.stdout) == (4, "Two.\n")
    assert result.stderr == "trivium: no such model\n"
    play("  ", "Two.")
    assert chat("first", "second").exit_code == 1
    play("One.", "  ")
    assert chat("first", "/retry").exit_code == 1


def test_nobody_to_ask(play: Callable[..., ScriptedModel], folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    play(ToolCall("c1", "read_file", '{"path": "notes.txt"}'), WRITE, "No.", "Two.")
    result = chat("first", "second")
    assert (result.exit_code, result.stdout) == (3, "No.\nTwo.\n")
    assert not (folder / "out.txt").exists()


# Commands


def test_help_lists_every_command(play: Callable[..., ScriptedModel]) -> None:
    play()
    shown = chat("/help").stderr
    assert all(f"\n{name} " in "\n" + shown for name in COMMANDS)


@pytest.mark.parametrize("line", ["/etc/hosts is what?", "/", "/2 of it"])
def test_not_every_slash_is_a_command(play: Callable[..., ScriptedModel], line: str) -> None:
    model = play("ok")
    assert chat(line).exit_code == 0
    assert asked(model) == [line]


def test_an_unknown_command(play: Callable[..., ScriptedModel]) -> None:
    play()
    result = chat("/nonsense")
    assert result.exit_code == 2
    assert result.stderr == "trivium: there is no command /nonsense; /help lists them\n"


def test_bye_ends_it(play: Callable[..., ScriptedModel]) -> None:
    model = play()
    assert chat("/bye", "more").exit_code == 0
    assert model.calls == []


def test_undo_and_retry(play: Callable[..., ScriptedModel]) -> None:
    model = play("One.", "Two.", "Two again.", "Three.")
    result = chat("first", "second", "/retry", "/undo", "third")
    assert result.stdout == "One.\nTwo.\nTwo again.\nThree.\n"
    assert asked(model) == ["first", "second", "second", "third"]
    assert [message.text for message in model.calls[3]] == ["first", "One.", "third"]
    assert "taken back: second" in result.stderr
    assert talk().messages[-1] == Message("assistant", "Three.")


@pytest.mark.parametrize("command", ["/undo", "/retry", "/save", "/save name"])
def test_nothing_said_yet(play: Callable[..., ScriptedModel], command: str) -> None:
    play()
    result = chat(command)
    assert result.exit_code == 2 and "nothing has been said yet" in result.stderr


def test_undo_files(play: Callable[..., ScriptedModel], folder: Path) -> None:
    (folder / "out.txt").write_text("old")
    play(WRITE, "Done.")
    assert chat("write", "/undo files").exit_code == 0
    assert (folder / "out.txt").read_text() == "old"


def test_undo_files_that_changed_since(play: Callable[..., ScriptedModel], folder: Path) -> None:
    (folder / "out.txt").write_text("old")
    play(WRITE, "Done.")
    assert chat("write").exit_code == 0
    (folder / "out.txt").write_text("mine")
    play()
    refused = chat("/undo files")
    assert refused.exit_code == 3 and "force the undo" in refused.stderr
    assert chat("/undo files force").exit_code == 0
    assert (folder / "out.txt").read_text() == "old"


def test_instructions(play: Callable[..., ScriptedModel]) -> None:
    model = play("One.", "Two.", "Three.")
    result = chat(
        "first",
        "/system",
        "/system Be brief.",
        "second",
        "/system none",
        "third",
        options=("-s", "Hm"),
    )
    assert [call[0].text for call in model.calls] == ["Hm", "Be brief.", "first"]
    assert result.stderr.splitlines() == ["Hm", "Be brief.", "no instructions"]


def test_clear_save_and_load(play: Callable[..., ScriptedModel]) -> None:
    model = play("One.", "Two.", "Three.")
    result = chat(
        "first", "/save my talk", "/clear", "second", "/load", "/load my talk", "/save", "third"
    )
    assert result.exit_code == 0, result.stderr
    assert [message.text for message in model.calls[1]] == ["second"]
    assert [message.text for message in model.calls[2]] == ["first", "One.", "third"]
    assert len(conversation.stored()) == 2
    assert "  first" in result.stderr and "  second" in result.stderr  # the list
    assert "first (turns so far: 1)" in result.stderr


def test_load_what_is_not_there(play: Callable[..., ScriptedModel]) -> None:
    model = play("One.", "Two.")
    result = chat("first", "/load nothing", "/load", "second")
    assert result.exit_code == 4
    assert len(model.calls[1]) == 3, "the conversation goes on"


def test_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {name: ScriptedModel("ok", "ok") for name in ("remote:a", "remote:b")}

    def open_model(name: str, settings: Any) -> ScriptedModel:
        if name not in models:
            raise NotFound(f"no model {name}")
        models[name].name = name
        return models[name]

    monkeypatch.setattr(session, "open_model", open_model)
    lines = ("one", "/model", "/model remote:b", "two", "/model nowhere", "three")
    result = chat(*lines, options=("-m", "remote:a"))
    assert result.exit_code == 4
    assert [len(model.calls) for model in models.values()] == [1, 2]
    assert len(models["remote:b"].calls[1]) == 5, "it reads what was said before"
    assert result.stderr.splitlines() == ["remote:a", "remote:b", "trivium: no model nowhere"]
    assert talk().model == "remote:b"
    # loading brings the conversation's own model back
    models["remote:a"] = ScriptedModel("ok")
    models["remote:b"] = ScriptedModel("ok")
    result = chat(f"/load {talk().id}", "four", options=("-m", "remote:a"))
    assert len(models["remote:b"].calls) == 1


def test_the_models_of_an_endpoint(play: Callable[..., ScriptedModel]) -> None:
    play(available=lambda: ["apple", "pear"])
    assert chat("/models").stderr.splitlines()[-2:] == ["remote:apple", "remote:pear"]


def test_tools(play: Callable[..., ScriptedModel]) -> None:
    play()
    assert "read_file       Read a text file" in chat("/tools").stderr
    assert chat("/tools", options=("--no-tools",)).stderr == "no tools\n"


def test_the_context_is_counted(play: Callable[..., ScriptedModel]) -> None:
    play(
        [TextDelta("a"), Finish("stop", Usage(10, 5, 2))],
        [WRITE, Finish("tool_calls", Usage(30, 5))],
        [TextDelta("b"), Finish("stop", Usage(70, 11, 30))],
        context=100,
    )
    shown = chat("one", "/usage", "two", "/usage").stderr
    assert "10 tokens read (2 of them from the cache), 5 written" in shown
    assert "context: 15 of 100 tokens used, 85 left" in shown
    assert "100 tokens read (30 of them from the cache), 16 written" in shown  # of both calls
    assert "context: 81 of 100 tokens are used; /clear starts a new conversation" in shown


def test_a_context_that_overflows_is_told_and_nothing_is_lost(
    play: Callable[..., ScriptedModel],
) -> None:
    def overflow(messages: Any) -> Any:
        raise TriviumError("9,000 tokens do not fit the context of 8,192")

    model = play("One.", overflow, "Three.")
    result = chat("first", "second", "/undo", "third")
    assert "9,000 tokens do not fit" in result.stderr
    assert [message.text for message in model.calls[2]] == ["first", "One.", "third"]


def test_continue(play: Callable[..., ScriptedModel]) -> None:
    play("One.")
    chat("first")
    model = play("Two.")
    assert chat("second", options=("-c",)).stdout == "Two.\n"
    assert [message.text for message in model.calls[0]] == ["first", "One.", "second"]


# A terminal


PROMPT = "\x1b[0m>"


class Terminal:
    """`trivium chat` with a terminal of its own, as a person has it."""

    def __init__(self, script: str, *options: str, case: str = "") -> None:
        code = textwrap.dedent(script) + f"\nmain(['chat', *{list(options)!r}])"
        self.pid, self._handle = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
            os.execv(sys.executable, [sys.executable, "-c", code, case])
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._handle, text.encode())

    def wait_for(self, text: str, seconds: float = 20) -> None:
        """Read until `text` has come, and forget what came up to it."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self._handle], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.shown!r}"
            self.shown += os.read(self._handle, 65536).decode(errors="replace")
        self.shown = self.shown.split(text, 1)[1]

    def leave(self) -> int:
        while True:
            try:
                self.shown += os.read(self._handle, 65536).decode(errors="replace")
            except OSError:
                break
        os.close(self._handle)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


SCRIPT = """
import sys, time
from trivium.cli import main, session
from trivium.errors import UsageError
from trivium.llmos.chat_model import ScriptedModel
from trivium.llmos.messages import *

def endless():
    while True:
        yield TextDelta("word ")
        time.sleep(0.02)

def echo(messages):
    return f"<{messages[-1].text!r}>"

def overflow(messages):
    raise UsageError("9,000 tokens do not fit the context of 8,192")

if "overflow" in sys.argv:
    model = ScriptedModel(overflow, echo)
else:
    model = ScriptedModel("Hello 你好.", endless(), echo, echo, echo)
session.open_model = lambda name, settings: model
"""


def test_a_person_talks(folder: Path) -> None:
    terminal = Terminal(SCRIPT)
    terminal.wait_for("scripted in")
    terminal.wait_for(PROMPT)
    terminal.type("hi\r")
    terminal.wait_for("Hello 你好.")
    terminal.wait_for(PROMPT)
    terminal.type("go on and on\r")
    terminal.wait_for("word word word")
    terminal.type("\x03")  # Ctrl-C stops the answer, not the chat
    terminal.wait_for("stopped")
    terminal.wait_for(PROMPT)
    terminal.type('"""\rline 1\rline 2\r"""\r')
    terminal.wait_for(r"<'line 1\nline 2'>")
    terminal.wait_for(PROMPT)
    terminal.type("one\x1b\rtwo\r")  # Alt-Enter
    terminal.wait_for(r"<'one\ntwo'>")
    terminal.wait_for(PROMPT)
    terminal.type("half\x03")  # at the prompt, Ctrl-C drops the line
    terminal.wait_for("(Ctrl-D or /bye leaves)")
    terminal.wait_for(PROMPT)
    terminal.type("\x1b[A\r")  # the history
    terminal.wait_for(r"<'one\ntwo'>")
    terminal.wait_for(PROMPT)
    terminal.type("/bye\r")
    assert terminal.leave() == 0
    assert "Traceback" not in terminal.shown
    texts = [message.text for message in talk().messages]
    assert texts[:3] == ["hi", "Hello 你好.", "go on and on"]
    assert texts[3].startswith("word word word")
    history = Path(os.environ["TRIVIUM_HOME"]) / "state" / "chat_history"
    assert "go on and on" in history.read_text() and history.stat().st_mode & 0o777 == 0o600


def test_the_end_of_input_leaves_and_continuing_tells_where_it_was(folder: Path) -> None:
    terminal = Terminal(SCRIPT)
    terminal.wait_for(PROMPT)
    terminal.type("hi\r")
    terminal.wait_for("Hello")
    terminal.wait_for(PROMPT)
    terminal.type("\x04")
    assert terminal.leave() == 0
    terminal = Terminal(SCRIPT, "-c")
    terminal.wait_for("hi (turns so far: 1)")
    terminal.wait_for(PROMPT)
    terminal.type("\x04")
    assert terminal.leave() == 0


def test_errors_and_bytes_that_are_not_text_do_not_end_the_chat(folder: Path) -> None:
    terminal = Terminal(SCRIPT)
    terminal.wait_for(PROMPT)
    os.write(terminal._handle, b"na\xefve\r")
    terminal.wait_for("trivium: the request is not valid UTF-8 text")
    terminal.wait_for(PROMPT)
    terminal.type("/nonsense\r")
    terminal.wait_for("there is no command /nonsense")
    terminal.wait_for(PROMPT)
    terminal.type("hi\r")
    terminal.wait_for("Hello")
    terminal.wait_for(PROMPT)
    terminal.type("/bye\r")
    assert terminal.leave() == 0


def test_a_way_out_of_a_full_context_is_offered(folder: Path) -> None:
    terminal = Terminal(SCRIPT, case="overflow")
    terminal.wait_for(PROMPT)
    terminal.type("a long text\r")
    terminal.wait_for("9,000 tokens do not fit")
    terminal.wait_for("/clear begins anew")
    terminal.wait_for(PROMPT)
    terminal.type("/clear\r")
    terminal.wait_for("a new conversation; /load")
    terminal.wait_for(PROMPT)
    terminal.type("short\r")
    terminal.wait_for("<'short'>")
    terminal.wait_for(PROMPT)
    terminal.type("/bye\r")
    assert terminal.leave() == 0
    assert [len(talk(number).messages) for number in (0, 1)] == [2, 1]


KILLED = """
import os
def die(messages):
    yield TextDelta("I was about to")
    os.kill(os.getpid(), 9)

model = ScriptedModel("Hello.", lambda messages: die(messages))
"""


def test_a_chat_that_was_killed_goes_on(play: Callable[..., ScriptedModel], folder: Path) -> None:
    terminal = Terminal(SCRIPT + KILLED)
    terminal.wait_for(PROMPT)
    terminal.type("hi\r")
    terminal.wait_for("Hello.")
    terminal.wait_for(PROMPT)
    terminal.type("and then?\r")
    assert terminal.leave() == -9
    model = play("Now, finally.")
    assert chat("/retry", options=("-c",)).stdout == "Now, finally.\n"
    assert [message.text for message in model.calls[0]] == ["hi", "Hello.", "and then?"]
