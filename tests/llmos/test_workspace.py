"""The workspace: no path leads out of it, and every recorded change can be taken back."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trivium.errors import NotFound, Refused, TriviumError, UsageError
from trivium.llmos import beneath, snapshots, undo
from trivium.llmos.tools import ToolError
from trivium.llmos.workspace import Workspace


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "notes.txt").write_text("hello")
    (folder / "docs").mkdir()
    (folder / "docs" / "a.md").write_text("# a")
    return folder


@pytest.fixture
def workspace(root: Path) -> Workspace:
    return Workspace(root)


def tree(root: Path) -> dict[str, tuple[str, int, bytes, int]]:
    """Every entry below `root`: kind, mode, content, and the time of files."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content, modified = b"", 0
            if stat.S_ISLNK(status.st_mode):
                content = os.fsencode(os.readlink(path))
            elif stat.S_ISREG(status.st_mode):
                content, modified = Path(path).read_bytes(), status.st_mtime_ns
            kind = "folder" if stat.S_ISDIR(status.st_mode) else oct(stat.S_IFMT(status.st_mode))
            found[os.path.relpath(path, root)] = (
                kind,
                stat.S_IMODE(status.st_mode),
                content,
                modified,
            )
    return found


# --- the root -----------------------------------------------------------------------------------


def test_a_root_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such folder"):
        Workspace(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a folder"):
        Workspace(tmp_path / "file")


def test_the_current_folder_may_have_been_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(NotFound, match=r"no such folder: \."):
        Workspace(Path("."))


def test_a_root_behind_a_link_is_resolved(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    workspace = Workspace(tmp_path / "link")
    assert workspace.root == root
    assert workspace.resolve(str(tmp_path / "link" / "notes.txt")) == root / "notes.txt"


def test_an_ordinary_root_is_writable(workspace: Workspace, root: Path) -> None:
    assert (workspace.writable, workspace.note) == (root, "")
    assert not (root / "outputs").exists()


@pytest.mark.parametrize("limits", [{"max_files": 2}, {"max_bytes": 4}])
def test_a_root_too_large_to_snapshot_gets_outputs(root: Path, limits: dict[str, int]) -> None:
    workspace = Workspace(root, **limits)
    assert "too much to be able to undo" in workspace.note
    assert workspace.writable == root / "outputs"
    assert (root / "outputs").is_dir()


def test_home_and_a_root_with_our_state_get_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    (tmp_path / "person").mkdir()
    assert "it is your home folder" in Workspace(tmp_path / "person").note
    monkeypatch.setattr("sys.prefix", str(tmp_path / "project" / ".venv"))
    (tmp_path / "project" / ".venv").mkdir(parents=True)
    project = Workspace(tmp_path / "project")
    assert "the Python that runs Trivium is in it" in project.note
    assert project.writable == tmp_path / "project" / "outputs"
    assert Workspace(tmp_path / "person").writable == tmp_path / "person" / "outputs"
    assert "Trivium keeps its own state in it" in Workspace(tmp_path).note
    assert "it is the root of the file system" in Workspace(Path("/")).note


def test_outputs_that_is_a_link_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root / "outputs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="is a link"):
        _ = Workspace(root, max_files=1).writable


def test_what_is_recorded_in_outputs_is_named_from_the_root(root: Path) -> None:
    workspace = Workspace(root, max_files=2)
    with workspace.recording("step") as change:
        (workspace.writable / "new.txt").write_text("x")
        (root / "elsewhere.txt").write_text("not recorded")
    assert change.files == ("outputs/new.txt",)
    assert workspace.history()[0].files == ("outputs/new.txt",)
    workspace.undo()
    assert not (workspace.writable / "new.txt").exists()


# --- paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["notes.txt", "./notes.txt", "docs/../notes.txt", "docs//../notes.txt", "{root}/notes.txt"],
)
def test_paths_inside(workspace: Workspace, root: Path, path: str) -> None:
    assert workspace.resolve(path.format(root=root)) == root / "notes.txt"


def test_links_inside_are_followed_to_their_real_path(workspace: Workspace, root: Path) -> None:
    (root / "link").symlink_to("docs")
    assert workspace.resolve("link/a.md") == root / "docs" / "a.md"
    assert workspace.resolve("link/new.md", must_exist=False) == root / "docs" / "new.md"
    assert workspace.relative(workspace.resolve("link/a.md")) == "docs/a.md"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/etc/passwd", "/etc/passwd is outside the workspace: give a path relative to it"),
        ("..", "is outside the workspace"),
        ("../work2/x", "is outside the workspace"),
        ("docs/../../secret", "is outside the workspace"),
        ("~/secret/../../..", "is outside the workspace"),
        ("out/secret", "is outside the workspace"),
        ("out/new.txt", "is outside the workspace"),
        ("hop/secret", "is outside the workspace"),
        ("dangling", "is outside the workspace"),
        ("circle", "circle is a link that leads in a circle"),
        ("circle/x", "cannot be used"),
        ("pipe", "pipe is a named pipe, not a file or folder"),
        ("socket", "socket is a socket"),
        ("", "'' is not a path"),
        ("a\0b", "is not a path"),
        ("a/" * 5000, "is not a path"),
        ("x" * 300, "cannot be used: File name too long"),
        ("\ud800", "is not a path"),
    ],
)
@pytest.mark.parametrize("must_exist", [True, False])
def test_paths_that_are_refused(
    workspace: Workspace, root: Path, tmp_path: Path, path: str, message: str, must_exist: bool
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    (root / "out").symlink_to(outside)
    (root / "hop").symlink_to("out")
    (root / "dangling").symlink_to(tmp_path / "nothing")
    (root / "circle").symlink_to("circle")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(root)  # the address of a socket may have only 108 characters
        server.bind("socket")
        os.chdir(here)
    with pytest.raises(ToolError) as caught:
        workspace.resolve(path, must_exist=must_exist)
    assert message in str(caught.value)
    str(caught.value).encode()


def test_devices_are_refused() -> None:
    with pytest.raises(ToolError, match="is a device"):
        Workspace(Path("/dev")).resolve("null")


@pytest.mark.parametrize("path", ["note.txt", "Notes.txt", "docs/notes.txt", "a.txt/notes.txt"])
def test_a_missing_file_offers_what_was_meant(workspace: Workspace, path: str) -> None:
    with pytest.raises(ToolError, match="in the workspace; is it notes.txt") as caught:
        workspace.resolve(path)
    assert caught.value.sources == {"names:."}


def test_a_missing_file_without_likeness(workspace: Workspace) -> None:
    with pytest.raises(ToolError, match="there is no zzz in the workspace: list_files") as caught:
        workspace.resolve("zzz")
    assert caught.value.sources == frozenset()
    assert workspace.resolve("zzz", must_exist=False) == workspace.root / "zzz"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(alphabet="./a\\~\0 ln", max_size=12))
def test_no_path_leads_out(root: Path, text: str) -> None:
    (root / "l").unlink(missing_ok=True)
    (root / "l").symlink_to("/")
    (root / "n").unlink(missing_ok=True)
    (root / "n").symlink_to("..")
    for must_exist in (True, False):
        try:
            real = Workspace(root).resolve(text, must_exist=must_exist)
        except ToolError:
            continue
        assert real.resolve() == real
        assert real == root or root in real.parents


def test_opening_follows_no_link_that_was_swapped_in(root: Path, tmp_path: Path) -> None:
    """Between the check of a path and its use, code swaps a folder or the file for a link."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.md").write_text("secret")
    workspace = Workspace(root)
    parts = workspace.parts(workspace.resolve("docs/a.md"))
    shutil.rmtree(root / "docs")
    (root / "docs").symlink_to(outside)
    with pytest.raises(OSError):
        beneath.open_file(root, parts)
    with pytest.raises(OSError), beneath.replacing(root, parts) as file:
        file.write(b"x")
    assert (outside / "a.md").read_text() == "secret"
    (root / "docs").unlink()
    (root / "docs").mkdir()
    (root / "docs" / "a.md").symlink_to(outside / "a.md")
    with pytest.raises(OSError):
        beneath.open_file(root, parts)
    with beneath.replacing(root, parts) as file:  # replaces the link, not what it points to
        file.write(b"x")
    assert (outside / "a.md").read_text() == "secret"
    assert (root / "docs" / "a.md").read_bytes() == b"x"


def test_a_pipe_that_was_swapped_in_does_not_hang(root: Path) -> None:
    os.mkfifo(root / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        beneath.open_file(root, ("pipe",))


def test_replacing_is_whole_or_not_at_all(root: Path) -> None:
    (root / "notes.txt").chmod(0o640)
    before = tree(root)
    with pytest.raises(KeyError), beneath.replacing(root, ("notes.txt",)) as file:
        file.write(b"half")
        raise KeyError
    assert tree(root) == before
    with beneath.replacing(root, ("notes.txt",)) as file:
        file.write(b"new")
    assert stat.S_IMODE((root / "notes.txt").stat().st_mode) == 0o640


# --- recording and undo -------------------------------------------------------------------------


def test_recording_says_what_changed(workspace: Workspace, root: Path) -> None:
    (root / "old.txt").write_text("x")
    with workspace.recording("step") as change:
        (root / "notes.txt").write_text("changed")
        (root / "new").mkdir()
        (root / "new" / "中文😀.txt").write_text("x")
        (root / "link").symlink_to("notes.txt")
        (root / "old.txt").unlink()
        assert (change.files, change.deleted) == ((), ())
    assert change.files == ("link", "new/中文😀.txt", "notes.txt")
    assert change.deleted == ("old.txt",)
    (step,) = workspace.history()
    assert (step.label, step.files, step.deleted) == ("step", change.files, change.deleted)
    assert abs(step.time - time.time()) < 60
    said = workspace.undo()
    assert said == (
        "undid 'step': brought back notes.txt, old.txt; removed link, new, new/中文😀.txt"
    )


def test_nothing_changed_is_no_step(workspace: Workspace, root: Path) -> None:
    with workspace.recording("step") as change:
        os.utime(root / "notes.txt", (1, 1))
        (root / "notes.txt").write_text("hello")
    assert (change.files, change.deleted, workspace.history()) == ((), (), ())
    with pytest.raises(UsageError, match="nothing to undo in"):
        workspace.undo()


def test_everything_can_be_deleted_and_comes_back(workspace: Workspace, root: Path) -> None:
    (root / "empty").mkdir(mode=0o750)
    (root / "run.sh").write_bytes(b"\x00\xff")
    (root / "run.sh").chmod(0o755)
    (root / "out").symlink_to("/etc")
    (root / "dangling").symlink_to("nowhere")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x").write_text("x")
    os.close(os.open(os.fsencode(root) + b"/\xff\xfe", os.O_CREAT, 0o600))
    before = tree(root)
    with workspace.recording("rm -rf") as change:
        for entry in root.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    assert len(change.deleted) == 7
    workspace.undo()
    assert tree(root) == before


def test_locked_folders_come_back(workspace: Workspace, root: Path) -> None:
    (root / "locked").mkdir()
    (root / "locked" / "a").write_text("a")
    (root / "locked").chmod(0o555)
    before = tree(root)
    with workspace.recording("unlock and change"):
        (root / "locked").chmod(0o700)
        (root / "locked" / "a").write_text("b")
        (root / "docs").chmod(0o000)
        (root / "locked").chmod(0o000)
    workspace.undo()
    assert tree(root) == before
    (root / "locked").chmod(0o700)  # for pytest to clean up


def test_steps_are_undone_last_first(workspace: Workspace, root: Path) -> None:
    states = []
    for number in range(4):
        states.append(tree(root))
        with workspace.recording(f"step {number}"):
            (root / "notes.txt").write_text(f"version {number}")
            (root / f"file{number}").write_text("x")
    assert [step.label for step in workspace.history()] == [f"step {n}" for n in range(4)]
    for state in reversed(states):
        Workspace(root).undo()  # another process later
        assert tree(root) == state
    assert workspace.history() == ()


def test_a_failing_block_is_recorded(workspace: Workspace, root: Path) -> None:
    before = tree(root)
    with pytest.raises(KeyboardInterrupt), workspace.recording("step") as change:
        (root / "notes.txt").write_text("changed")
        raise KeyboardInterrupt
    assert change.files == ("notes.txt",)
    workspace.undo()
    assert tree(root) == before


def test_undo_refuses_to_overwrite_what_somebody_changed_since(
    workspace: Workspace, root: Path
) -> None:
    with workspace.recording("step"):
        (root / "notes.txt").write_text("tool")
        (root / "made").mkdir()
        (root / "made" / "a").write_text("tool")
    (root / "notes.txt").write_text("person")
    (root / "made" / "b").write_text("person")
    before = tree(root)
    with pytest.raises(Refused, match="cannot undo 'step': made/b, notes.txt changed since"):
        workspace.undo()
    assert tree(root) == before
    workspace.undo(force=True)
    assert (root / "notes.txt").read_text() == "hello"
    assert (root / "made" / "b").read_text() == "person"  # not the step's to remove
    assert not (root / "made" / "a").exists()
    (forced,) = workspace.history()
    assert forced.label == "forced undo of step"
    workspace.undo()  # so nothing was lost by force
    assert tree(root) == before


@pytest.mark.parametrize("how", ["gone", "file", "link"])
def test_a_folder_on_the_way_that_somebody_replaced(
    workspace: Workspace, root: Path, tmp_path: Path, how: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with workspace.recording("step"):
        (root / "docs" / "a.md").unlink()
    (root / "docs").rmdir()
    if how == "file":
        (root / "docs").write_text("person")
    if how == "link":
        (root / "docs").symlink_to(outside)
    with pytest.raises(Refused, match="docs changed since"):
        workspace.undo()
    workspace.undo(force=True)
    assert (root / "docs" / "a.md").read_text() == "# a"
    assert not (root / "docs").is_symlink()
    assert list(outside.iterdir()) == []


def test_special_files_are_removed_and_their_loss_is_said(workspace: Workspace, root: Path) -> None:
    os.mkfifo(root / "pipe")
    with workspace.recording("first"):
        os.mkfifo(root / "pipe2")
        (root / "pipe").unlink()
    assert "could not bring back pipe" in workspace.undo()
    assert not (root / "pipe2").exists()


def test_a_damaged_store_is_noticed_before_anything_is_touched(
    workspace: Workspace, root: Path, home: Path
) -> None:
    with workspace.recording("step"):
        (root / "notes.txt").write_text("changed")
        (root / "docs" / "a.md").unlink()
    (store,) = (home / "state" / "undo").glob("*/objects/small.sqlite")
    with contextlib.closing(sqlite3.connect(store)) as small, small:
        small.execute("UPDATE small SET data = ? WHERE data = ?", (b"jello", b"hello"))
    before = tree(root)
    with pytest.raises(TriviumError, match="the undo store .* is damaged"):
        workspace.undo()
    assert tree(root) == before


def test_a_folder_that_grew_too_large_is_refused_before_the_block(root: Path) -> None:
    workspace = Workspace(root, max_files=10)
    before = tree(root)
    with workspace.recording("grow"):
        for number in range(20):
            (root / f"f{number}").write_text(str(number))
        (root / "notes.txt").unlink()
    ran = []
    with (
        pytest.raises(Refused, match="holds more than 10 files or 512 MiB, too much"),
        workspace.recording("next"),
    ):
        ran.append(1)
    assert ran == []
    workspace.undo()
    assert tree(root) == before
    with workspace.recording("next"):
        pass


def test_a_damaged_journal_is_one_clear_line(workspace: Workspace, root: Path, home: Path) -> None:
    with workspace.recording("step"):
        (root / "notes.txt").write_text("changed")
    (index,) = (home / "state" / "undo").glob("*/index.json")
    index.write_text('{"notes')
    with pytest.raises(TriviumError, match="index.json is damaged; removing .* starts anew"):
        workspace.undo()
    index.unlink()
    (index.parent / "objects" / "small.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(TriviumError, match="cannot be used: file is not a database"):
        workspace.undo()


def test_a_folder_that_has_gone(workspace: Workspace, root: Path) -> None:
    with workspace.recording("step"):
        (root / "notes.txt").write_text("changed")
    shutil.rmtree(root)
    with pytest.raises(NotFound, match="no such folder"):
        workspace.undo()


@pytest.mark.parametrize("size", [4_000, 400_000])
def test_old_steps_are_dropped(root: Path, size: int) -> None:
    store = undo.UndoStore(root, max_files=100, max_bytes=5 * size // 2, max_steps=3)
    for number in range(6):
        with store.recording(f"small {number}"):
            (root / "notes.txt").write_text(str(number))
    assert [step.label for step in store.history()] == ["small 3", "small 4", "small 5"]
    for number in range(5):
        with store.recording(f"large {number}"):
            (root / "notes.txt").write_bytes(bytes([number]) * size)
    assert [step.label for step in store.history()] == ["large 3", "large 4"]
    with undo.Objects.opened(store.folder / "objects") as objects:
        for number in range(5):
            digest = hashlib.sha256(bytes([number]) * size).hexdigest()
            if number < 2:
                with pytest.raises(TriviumError, match="lacks"):
                    objects.check(digest)
            else:
                objects.check(digest)


def test_unchanged_files_are_not_read_again(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time.sleep(0.1)  # past the grain of the clock
    with workspace.recording("first"):
        pass
    read: list[str] = []
    opening = beneath.open_file
    monkeypatch.setattr(
        snapshots.beneath, "open_file", lambda *a: (read.append(a[1][-1]), opening(*a))[1]
    )
    with workspace.recording("second") as change:
        (root / "new.txt").write_text("x")
    assert change.files == ("new.txt",)
    assert set(read) == {"new.txt"}


def test_a_change_within_the_grain_of_the_clock_is_seen(workspace: Workspace, root: Path) -> None:
    """Same size, same inode, times set back: only the time of change, or a second look, tells."""
    path = root / "notes.txt"
    for number in range(20):
        status = path.stat()
        with workspace.recording("step") as change:
            with path.open("r+b") as file:
                file.write(f"{number:05}".encode())
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert change.files == ("notes.txt",)


def test_a_mount_of_a_link_store_is_private(workspace: Workspace, root: Path, home: Path) -> None:
    with workspace.recording("step"):
        (root / "notes.txt").write_text("x")
    (store,) = (home / "state" / "undo").iterdir()
    assert stat.S_IMODE(store.stat().st_mode) == 0o700
    assert (store / "folder.txt").read_text() == f"{root}\n"


# --- crashes, other processes -------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
from trivium.llmos.workspace import Workspace
root = Path(sys.argv[1])
workspace = Workspace(root)
print("scanning", flush=True)
with workspace.recording("killed"):
    (root / "notes.txt").write_text("half")
    print("inside", flush=True)
    time.sleep(float(sys.argv[2]))
print("done", flush=True)
"""


def child(root: Path, seconds: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), str(seconds)], stdout=subprocess.PIPE, text=True
    )


def said(process: "subprocess.Popen[str]", word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


def test_a_killed_tool_is_undone_later(workspace: Workspace, root: Path) -> None:
    before = tree(root)
    with child(root, 60) as process:
        said(process, "scanning")
        said(process, "inside")
        process.send_signal(signal.SIGKILL)
    (step,) = workspace.history()
    assert (step.label, step.files) == ("killed (interrupted)", ("notes.txt",))
    workspace.undo(force=True)
    assert tree(root) == before


def test_what_came_after_a_killed_tool_is_not_taken_for_its_work(
    workspace: Workspace, root: Path
) -> None:
    with child(root, 60) as process:
        said(process, "scanning")
        said(process, "inside")
        process.send_signal(signal.SIGKILL)
    (root / "mine.txt").write_text("written by the user after that")
    with pytest.raises(Refused, match="mine.txt, notes.txt changed since, or may have"):
        workspace.undo()
    assert (root / "mine.txt").exists()
    workspace.undo(force=True)
    assert not (root / "mine.txt").exists()
    workspace.undo()
    assert (root / "mine.txt").read_text() == "written by the user after that"


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_killed_at_any_moment_the_store_stays_usable(root: Path, delay: float) -> None:
    for number in range(300):
        (root / f"f{number}").write_bytes(os.urandom(20_000))
    before = tree(root)
    with child(root, 0.05) as process:
        said(process, "scanning")
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    workspace = Workspace(root)
    if workspace.history():
        workspace.undo(force=True)
    assert tree(root) == before
    with workspace.recording("next"):
        (root / "f0").unlink()
    workspace.undo()
    assert tree(root) == before


def test_a_step_already_written_is_not_recorded_twice(
    workspace: Workspace, root: Path, home: Path
) -> None:
    """The process died after writing the step, before it said so."""
    with workspace.recording("step"):
        (root / "notes.txt").write_text("x")
    (store,) = (home / "state" / "undo").iterdir()
    pending = {"label": "step", "time": 0.0, "number": 1}
    (store / "pending.json").write_text(json.dumps(pending))
    assert [step.label for step in workspace.history()] == ["step"]
    assert not (store / "pending.json").exists()


UNDO = "import sys; from pathlib import Path; from trivium.llmos.workspace import Workspace; "
UNDO += "w = Workspace(Path(sys.argv[1])); print('undoing', flush=True); w.undo()"


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.06, 0.1, 0.15])
def test_an_undo_that_was_killed_is_done_again(root: Path, delay: float) -> None:
    for number in range(300):
        (root / f"f{number}").write_bytes(os.urandom(2_000))
    (root / "link").symlink_to("f0")
    before = tree(root)
    with Workspace(root).recording("step"):
        for number in range(300):
            (root / f"f{number}").unlink()
        (root / "f0").mkdir()
        (root / "f0" / "new").write_text("x")
        (root / "link").unlink()
        (root / "link").symlink_to("f1")
    command = [sys.executable, "-c", UNDO, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        said(process, "undoing")
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    workspace = Workspace(root)
    if workspace.history():
        workspace.undo()
    assert tree(root) == before


def test_a_second_process_waits_its_turn(workspace: Workspace, root: Path) -> None:
    with child(root, 0.5) as process:
        said(process, "scanning")
        said(process, "inside")
        with workspace.recording("second") as change:
            (root / "second").write_text("x")
        said(process, "done")
    assert change.files == ("second",)
    assert [step.label for step in workspace.history()] == ["killed", "second"]


def test_a_second_process_does_not_wait_for_ever(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undo, "_PATIENCE", 0.1)
    with (
        workspace.recording("first"),
        pytest.raises(Refused, match="another run is at work in .*work: wait until it has ended"),
        Workspace(root).recording("second"),
    ):
        pytest.fail("two at once")


def test_threads_of_one_process_take_turns(workspace: Workspace, root: Path) -> None:
    seen: list[tuple[str, ...]] = []

    def work(name: str) -> None:
        with workspace.recording(name) as change:
            (root / name).write_text("x")
            time.sleep(0.05)
        seen.append(change.files)

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [("t0",), ("t1",), ("t2",), ("t3",)]


def test_a_forked_child_does_not_keep_the_lock(workspace: Workspace, root: Path) -> None:
    with workspace.recording("first"):
        pid = os.fork()
        if pid == 0:
            time.sleep(30)
            os._exit(0)
    try:
        start = time.monotonic()
        with workspace.recording("second"):
            pass
        assert time.monotonic() - start < 20
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_full_disk_stops_the_tool_before_it_acts(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Iterator[None]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots.Objects, "put", full)
    with pytest.raises(TriviumError, match="no space left"), workspace.recording("step"):
        pytest.fail("the tool ran")


def test_a_full_disk_is_not_taken_for_a_broken_store(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Iterator[None]:
        small = sqlite3.connect(":memory:")
        small.execute("PRAGMA max_page_count = 2")
        small.execute("CREATE TABLE t (x)")
        small.execute("INSERT INTO t VALUES (zeroblob(100000))")
        pytest.fail("that was to be too much")

    monkeypatch.setattr(snapshots.Objects, "put", full)
    with pytest.raises(TriviumError, match="no space left"), workspace.recording("step"):
        pytest.fail("the tool ran")


# --- random trees, random changes ---------------------------------------------------------------

paths = st.lists(st.sampled_from(["a", "b", "c", ".d", "é"]), min_size=1, max_size=3).map("/".join)
actions = st.one_of(
    st.tuples(st.just("write"), paths, st.binary(max_size=20)),
    st.tuples(st.just("folder"), paths, st.just(b"")),
    st.tuples(st.just("link"), paths, st.sampled_from([b"a", b"..", b"/etc", b"none", b"b/c"])),
    st.tuples(st.just("delete"), paths, st.just(b"")),
    st.tuples(st.just("rename"), paths, st.sampled_from([b"a", b"b", b"c/a", b".d"])),
    st.tuples(st.just("chmod"), paths, st.sampled_from([b"700", b"755", b"711", b"777"])),
    st.tuples(st.just("touch"), paths, st.just(b"")),
)


def act(root: Path, action: tuple[str, str, bytes]) -> None:
    """Do one thing to the tree, where it can be done; never through a link."""
    kind, name, data = action
    path = root / name
    if any(parent.is_symlink() for parent in path.parents if parent != root):
        return
    try:
        if kind == "write" and not path.is_symlink():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        elif kind == "folder":
            path.mkdir(parents=True)
        elif kind == "link":
            path.symlink_to(os.fsdecode(data))
        elif kind == "delete":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        elif kind == "rename":
            target = root / os.fsdecode(data)
            if not target.parent.is_symlink():
                path.rename(target)
        elif kind == "chmod" and not path.is_symlink():
            path.chmod(int(data, 8))
        elif kind == "touch" and not path.is_symlink():
            os.utime(path)
    except OSError:
        pass


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(
    st.lists(actions, max_size=12),
    st.lists(st.lists(actions, min_size=1, max_size=8), min_size=1, max_size=3),
)
def test_undo_restores_any_tree_bit_for_bit(
    tmp_path: Path,
    made: list[tuple[str, str, bytes]],
    steps: list[list[tuple[str, str, bytes]]],
) -> None:
    root = tmp_path / "random"
    shutil.rmtree(root, ignore_errors=True)
    shutil.rmtree(tmp_path / "home", ignore_errors=True)
    root.mkdir()
    for action in made:
        act(root, action)
    workspace = Workspace(root)
    states = []
    for step in steps:
        state, known = tree(root), len(workspace.history())
        with workspace.recording("step"):
            for action in step:
                act(root, action)
        if len(workspace.history()) > known:
            states.append(state)
        else:
            assert without_times(tree(root)) == without_times(state)
    for state in reversed(states):
        workspace.undo()
        assert without_times(tree(root)) == without_times(state)
    assert workspace.history() == ()


def without_times(state: dict[str, tuple[str, int, bytes, int]]) -> dict[str, object]:
    """A file that was only touched counts as unchanged, so its time is not brought back."""
    return {path: entry[:3] for path, entry in state.items()}
