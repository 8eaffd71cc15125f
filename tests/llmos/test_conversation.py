import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trivium.errors import NotFound, Refused, TriviumError, UsageError
from trivium.llmos import conversation
from trivium.llmos.conversation import Conversation
from trivium.llmos.kernel import INTERRUPTED
from trivium.llmos.messages import (
    Answer,
    Event,
    Failure,
    Message,
    TextDelta,
    ToolCall,
    ToolResult,
    Usage,
)

CALL = ToolCall("call_1", "read_file", '{"path": "日記.txt"}')
RESULT = ToolResult(CALL, "zeile\n👋", False, ("a.txt",), frozenset({"file:日記.txt"}), 0.25)
ANSWER = Answer("All done.", Usage(10, 3, 2), "stop")


@pytest.fixture
def home() -> Path:
    return Path(os.environ["TRIVIUM_HOME"])


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Conversation]:
    with Conversation(model="tiny", system="Be brief.", workspace=tmp_path) as talk:
        yield talk


def user(text: str) -> Message:
    return Message("user", text)


def reopened(talk: Conversation) -> Conversation:
    talk.close()
    with Conversation.open(talk.path) as again:
        return again


def lines(talk: Conversation) -> list[dict[str, Any]]:
    return [json.loads(line) for line in talk.path.read_text().splitlines()]


def test_a_conversation_comes_back_as_it_was(talk: Conversation) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    talk.say(Message("user", ({"type": "text", "text": "see"}, picture)), sources=["file:x.png"])
    for event in (
        TextDelta("I "),
        TextDelta("look."),
        CALL,
        RESULT,
        TextDelta("All done."),
        ANSWER,
    ):
        talk.record(event)
    talk.say(user("你好 👋 \ud800"))
    talk.record(Failure("steps", "no answer"))
    again = reopened(talk)
    assert again.messages == talk.messages
    assert again.messages == [
        Message("system", "Be brief."),
        talk.turns[0].message,
        Message("assistant", "I look.", (CALL,)),
        Message("tool", RESULT.content, tool_call_id="call_1", name="read_file"),
        Message("assistant", "All done."),
        user("你好 👋 \ud800"),
    ]
    assert again.sources == {"file:x.png", "file:日記.txt"}
    assert (again.id, again.title, again.model) == (talk.id, "see", "tiny")
    assert again.turns[0].events[2:] == talk.turns[0].events[3:]  # but for how words were cut
    assert [turn.answered for turn in again.turns] == [True, False]


def test_the_journal_holds_the_full_trace(talk: Conversation, tmp_path: Path) -> None:
    before = time.time()
    talk.say(user("hello"))
    for event in (CALL, RESULT, TextDelta("All "), TextDelta("done."), ANSWER):
        talk.record(event)
    kinds = ["conversation", "message", "call", "result", "text", "answer"]
    written = lines(talk)
    assert [line["type"] for line in written] == kinds
    assert all(before - 1 <= line["time"] <= time.time() + 1 for line in written)
    header = {"version": 1, "id": talk.id, "model": "tiny", "system": "Be brief."}
    header |= {"workspace": str(tmp_path), "title": "hello"}
    assert header.items() <= written[0].items()
    assert written[3]["seconds"] == 0.25 and written[3]["files"] == ["a.txt"]
    assert written[4]["text"] == "All done."
    assert written[5]["usage"] == {"prompt_tokens": 10, "completion_tokens": 3, "cached_tokens": 2}


def test_words_do_not_wait_long_for_the_disk(
    talk: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.1, 0.21, 0.3, 0.3])
    talk.say(user("hello"))
    monkeypatch.setattr(conversation, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    for word in ("a", "b", "c"):
        talk.record(TextDelta(word))
    assert [line["text"] for line in lines(talk)[2:]] == ["ab"]
    talk.close()
    assert [line["text"] for line in lines(talk)[2:]] == ["ab", "c"]


def test_nothing_said_leaves_no_file(talk: Conversation, home: Path) -> None:
    assert talk.undo() is None
    talk.change(model="other")
    talk.close()
    assert not home.exists()


def test_only_the_owner_can_read_it(talk: Conversation) -> None:
    talk.say(user("hello"))
    assert talk.path.stat().st_mode & 0o777 == 0o600
    assert talk.path.parent.stat().st_mode & 0o777 == 0o700


def test_undo_and_changes_are_kept(talk: Conversation) -> None:
    for word in ("one", "two"):
        talk.say(user(word))
        talk.record(ANSWER)
    undone = talk.undo()
    assert undone is not None and undone.message == user("two")
    talk.change(model="big", system="")
    again = reopened(talk)
    assert again.messages == talk.messages == [user("one"), Message("assistant", "All done.")]
    assert again.model == "big"
    assert "two" in talk.path.read_text()


def test_two_processes_do_not_write_one_conversation(talk: Conversation) -> None:
    talk.say(user("hello"))
    script = "import sys; from pathlib import Path; from trivium.llmos.conversation import *; "
    script += "Conversation.open(Path(sys.argv[1]))"
    other = subprocess.run(
        [sys.executable, "-c", script, talk.path], capture_output=True, text=True
    )
    assert other.returncode == 1
    assert f"Refused: conversation {talk.id} is open in another process" in other.stderr
    with pytest.raises(Refused):
        Conversation.open(talk.path)
    reopened(talk)  # once it is closed


# A process that dies


def _every_step() -> Iterator[Event]:
    for number in range(3):
        call = ToolCall(f"call_{number}", "read_file", "{}")
        yield TextDelta(f"Step {number}. ")
        yield call
        yield ToolResult(call, f"result {number}")
    yield TextDelta("All done.")
    yield ANSWER


def finished(messages: Sequence[Message]) -> list[Message]:
    """The results of tools, without the note that takes the place of a lost one."""
    return [m for m in messages if m.role == "tool" and m.content != INTERRUPTED]


def test_cut_at_any_byte_it_can_be_continued(talk: Conversation) -> None:
    talk.say(user("first"))
    for event in _every_step():
        talk.record(event)
    talk.close()
    whole = talk.path.read_bytes()
    begun = whole.index(b"\n", whole.index(b"\n") + 1) + 1  # header and first message
    full = reopened(talk).messages
    for size in range(begun, len(whole) + 1):
        talk.path.write_bytes(whole[:size])
        with Conversation.open(talk.path) as cut:
            cut.say(user("again"))
            cut.record(ANSWER)
            messages = cut.messages
        assert messages == reopened(cut).messages
        before = messages[:-2]
        assert before[0:2] == full[0:2], "the user's message is kept"
        results = finished(before)
        assert results == finished(full)[: len(results)]
        calls = [call.id for message in before for call in message.tool_calls]
        said = [message.tool_call_id for message in before if message.role == "tool"]
        assert calls == said, "a call has one result, if only that it was interrupted"
        assert len(said) - len(results) <= 1
        assert messages[-2:] == [user("again"), Message("assistant", "All done.")]


def test_cut_before_the_first_message_it_is_no_conversation(talk: Conversation) -> None:
    talk.say(user("first"))
    talk.close()
    whole = talk.path.read_bytes()
    for size in (0, 1, whole.index(b"\n") - 1):
        talk.path.write_bytes(whole[:size])
        with pytest.raises(
            TriviumError, match="is not a conversation, or its beginning is damaged"
        ):
            Conversation.open(talk.path)
        assert conversation.stored() == []


WRITER = """
import sys
from pathlib import Path
from trivium.llmos.conversation import Conversation
from trivium.llmos.messages import *
talk = Conversation(model="tiny", system=None, workspace=Path("/"))
talk.say(Message("user", "begin"))
print(talk.path, flush=True)
for number in range(100_000):
    call = ToolCall(f"call_{number}", "clock", "{}")
    for event in (TextDelta("x" * 50), call, ToolResult(call, f"{number} " + "y" * 5000)):
        talk.record(event)
    print(number, flush=True)
"""


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_a_random_point(seed: int) -> None:
    wait = random.Random(seed).uniform(0.0, 0.15)
    with subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        path = Path(writer.stdout.readline().decode().strip())
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        reported = writer.stdout.read().decode().splitlines()
    with Conversation.open(path) as talk:  # the lock died with its holder
        results = finished(talk.messages)
        assert len(results) >= len(reported), "what was reported as written is there"
        for number, result in enumerate(results):
            assert result.content == f"{number} " + "y" * 5000
        talk.say(user("go on"))
        talk.record(ANSWER)
    assert reopened(talk).messages[-2:] == [user("go on"), Message("assistant", "All done.")]


def test_a_write_that_fails_is_taken_back(talk: Conversation) -> None:
    talk.say(user("hello"))
    written = talk.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(written) + 20, limits[1]))
    try:
        with pytest.raises((OSError, TriviumError)):
            talk.record(Failure("model", "long " * 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert talk.path.read_bytes() == written
    talk.record(ANSWER)
    assert reopened(talk).messages[-1] == Message("assistant", "All done.")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_line(
    talk: Conversation, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(TriviumError, match="no space left on the disk"):
        talk.say(user("hello"))
    monkeypatch.undo()
    assert list((home / "data" / "conversations").iterdir()) == []


TEXTS = st.text(max_size=20)
CALLS = st.builds(ToolCall, st.sampled_from(["0", "1"]), TEXTS, TEXTS.filter(bool))


@st.composite
def turns(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = []
    for _ in range(draw(st.integers(0, 3))):
        events += [TextDelta(text) for text in draw(st.lists(TEXTS.filter(bool), max_size=3))]
        for call in draw(st.lists(CALLS, max_size=2)):
            events += [call, ToolResult(call, draw(TEXTS), draw(st.booleans()))]
    ends = st.builds(Answer, TEXTS.filter(str.strip)) | st.builds(Failure, st.just("model"), TEXTS)
    return events + draw(st.lists(ends, max_size=1))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(st.lists(st.tuples(TEXTS, turns()), min_size=1, max_size=4))
def test_stored_is_said(tmp_path: Path, said: list[tuple[str, list[Event]]]) -> None:
    with Conversation(model="tiny", system=None, workspace=tmp_path) as talk:
        for text, events in said:
            talk.say(user(text))
            for event in events:
                talk.record(event)
    again = reopened(talk)
    assert again.messages == talk.messages
    assert again.sources == talk.sources


# Finding them

HEADER = {"id": "x", "model": "tiny", "system": None, "workspace": "/", "title": "", "version": 1}


def stored(text: str, workspace: Path, age: float = 0.0) -> Conversation:
    with Conversation(model="tiny", system=None, workspace=workspace) as talk:
        talk.say(user(text))
    os.utime(talk.path, (time.time() - age,) * 2)
    return talk


def test_the_latest_of_a_workspace(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no conversation to continue in"):
        conversation.latest(tmp_path)
    old, new = stored("old", tmp_path, 60), stored("new", tmp_path, 30)
    elsewhere = stored("elsewhere", tmp_path / "sub")
    assert conversation.latest(tmp_path) == new.path
    assert [summary.title for summary in conversation.stored()] == ["elsewhere", "new", "old"]
    with Conversation.open(old.path) as again:
        again.say(user("more"))
    assert conversation.latest(tmp_path) == old.path
    assert conversation.latest(tmp_path / "sub") == elsewhere.path


def test_found_by_the_beginning_of_the_id_or_by_name(tmp_path: Path) -> None:
    one, two = stored("one", tmp_path), stored("two", tmp_path)
    assert conversation.find(one.id) == one.path
    with pytest.raises(UsageError, match="fits 2 conversations"):
        conversation.find(one.id[:4])
    with Conversation.open(two.path) as again:
        again.save_as("Reise 日本")
        again.save_as("Reise 日本")
    assert conversation.find("Reise 日本") == two.path
    with Conversation.open(one.path) as other, pytest.raises(UsageError, match="is taken"):
        other.save_as("Reise 日本")
    assert len(conversation.stored()) == 2


@pytest.mark.parametrize("name", ["", "nobody", "../../etc/passwd", "/etc/passwd", "*"])
def test_not_found(tmp_path: Path, name: str) -> None:
    stored("one", tmp_path)
    with pytest.raises(NotFound, match="no conversation is named"):
        conversation.find(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\nb", "a\x1b[31m"])
def test_bad_names(talk: Conversation, name: str) -> None:
    talk.say(user("hello"))
    with pytest.raises(UsageError, match="cannot be a name"):
        talk.save_as(name)


def test_a_name_for_nothing(talk: Conversation) -> None:
    with pytest.raises(UsageError, match="nothing has been said"):
        talk.save_as("name")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a conversation"),
        (b"\x00\xff" * 100, "not a conversation"),
        (b'{"type": "message"}\n', "not a conversation"),
        (b"[1]\n" * 3, "not a conversation"),
        (json.dumps({"type": "conversation", **HEADER, "version": 99}).encode(), "newer Trivium"),
        (b'{"type": "conversation"}\n', "is damaged"),
        (b'{"type": "conversation", "version": 1}\n', "is damaged"),
    ],
)
def test_files_that_are_not_conversations(home: Path, content: bytes, message: str) -> None:
    path = home / "data" / "conversations" / "x.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(TriviumError, match=message):
        Conversation.open(path)
    assert conversation.stored() == []


@pytest.mark.parametrize(
    "line",
    [
        '{"type": "undo"}',
        '{"type": "message"}',
        '{"type": "message", "message": {"role": "user"}, "sources": null}',
        '{"no": "type"}',
        '{"type": "change"}',
    ],
)
def test_a_damaged_line_is_named(talk: Conversation, line: str) -> None:
    talk.say(user("hello"))
    talk.undo()
    talk.close()
    with talk.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(TriviumError, match="is damaged"):
        Conversation.open(talk.path)


def test_lines_of_a_later_version_are_passed_over(talk: Conversation) -> None:
    talk.say(user("hello"))
    talk.close()
    with talk.path.open("a") as file:
        file.write('{"type": "mood", "value": "good"}\n')
    assert reopened(talk).messages == talk.messages


def test_the_title_is_short() -> None:
    with Conversation(model="tiny", system=None, workspace=Path("/")) as talk:
        talk.say(user("a " * 100), title="  what\nis  this ")
        assert talk.title == "what is this"
    with Conversation(model="tiny", system=None, workspace=Path("/")) as talk:
        talk.say(user("long " * 100))
        assert len(talk.title) == 60 and talk.title.endswith("…")
