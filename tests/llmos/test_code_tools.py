"""The tools `python` and `terminal` on a real workspace, through a real sandbox."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from trivium.errors import Refused
from trivium.llmos import code_tools as module
from trivium.llmos.code_tools import code_tools
from trivium.llmos.gateway import Gateway
from trivium.llmos.messages import ToolCall
from trivium.llmos.sandbox import Level, Limits, probe
from trivium.llmos.tools import ToolError, ToolOutput
from trivium.llmos.workspace import Workspace

pytestmark = pytest.mark.skipif(not probe().usable, reason=probe().summary)

Run = Callable[[str], ToolOutput]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "state"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def tools(folder: Path) -> Iterator[tuple[Run, Run]]:
    python, terminal = code_tools(Workspace(folder), Limits(seconds=10))
    yield python.function, terminal.function


def test_what_the_model_is_told(folder: Path) -> None:
    python, terminal = code_tools(Workspace(folder))
    assert (python.name, terminal.name) == ("python", "terminal")
    assert (python.effect, terminal.effect) == ("execute", "execute")
    assert list(python.parameters["properties"]) == python.parameters["required"] == ["code"]
    assert list(terminal.parameters["properties"]) == ["command"]
    assert "Run Python code" in python.description


def test_python_keeps_its_state(tools: tuple[Run, Run]) -> None:
    python, _ = tools
    assert python("x = 20\nx").text == "20"
    assert python("x + 1").text == "21"
    assert python("y = 1").text == "[no output]"
    assert python("print('out')\n1/0").text == (
        "out\n  line 2: 1/0\nZeroDivisionError: division by zero"
    )


def test_files_are_reported_and_undoable(folder: Path, tools: tuple[Run, Run]) -> None:
    python, terminal = tools
    workspace = Workspace(folder)
    (folder / "data.csv").write_text("n\n1\n2\n")
    made = python("open('sum.txt', 'w').write(str(3))")
    assert (made.text, made.files) == ("1\n[wrote sum.txt]", ("sum.txt",))
    gone = terminal("rm data.csv")
    assert (gone.text, gone.files) == ("[exit code 0]\n[deleted data.csv]", ())
    workspace.undo()
    assert (folder / "data.csv").read_text() == "n\n1\n2\n"
    workspace.undo()
    assert not (folder / "sum.txt").exists()
    assert terminal("ls").text == "data.csv\n[exit code 0]"


def test_what_python_writes_between_calls_cannot_be(folder: Path, tools: tuple[Run, Run]) -> None:
    python, terminal = tools
    python(
        "import threading, time\n"
        "def late():\n    time.sleep(0.05)\n    open('late.txt', 'w').close()\n"
        "threading.Thread(target=late).start()"
    )
    assert terminal("sleep 0.1; ls").text == "[exit code 0]"
    assert python("time.sleep(0.1)").files == ("late.txt",)


def test_plots_are_files(folder: Path, tools: tuple[Run, Run]) -> None:
    pytest.importorskip("matplotlib")
    python, _ = tools
    done = python("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
    assert (done.text, done.files) == ("[wrote plot-1.png]", ("plot-1.png",))
    assert (folder / "plot-1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("echo hi", "hi\n[exit code 0]"),
        ("true", "[exit code 0]"),
        ("exit 3", "[exit code 3]"),
        ("echo a; echo b >&2; echo c", "a\nb\nc\n[exit code 0]"),
        ("kill -9 $$", "[ended by SIGKILL]"),
        ("kill -40 $$", "[ended by signal 40]"),
        ("printf '\\033[31mred\\033[0m \\033]0;title\\007done'", "red done\n[exit code 0]"),
        ("printf '10%%\\r50%%\\r100%%\\n'", "100%\n[exit code 0]"),
        ("printf 'dos\\r\\nline\\r\\n'", "dos\nline\n[exit code 0]"),
        ("printf '\\a\\b\\0\\177x'", "x\n[exit code 0]"),
        ("printf '\\377'", "\ufffd\n[exit code 0]"),
    ],
)
def test_terminal_output_is_plain_text(tools: tuple[Run, Run], command: str, text: str) -> None:
    assert tools[1](command).text == text


def test_long_output_loses_its_middle(tools: tuple[Run, Run]) -> None:
    text = tools[1]("seq 1 20000").text
    assert text.startswith("1\n2\n")
    assert text.endswith("19999\n20000\n[exit code 0]")
    assert "characters left out" in text
    assert len(text) < module.SHOWN_CHARACTERS + 100


def test_limits_are_told(folder: Path) -> None:
    python, terminal = code_tools(Workspace(folder), Limits(seconds=0.5, output_bytes=1000))
    assert terminal.function("echo a; sleep 5").text == (
        "a\n[stopped: it was still running after 0.5 seconds]"
    )
    assert "[stopped: it printed more than 0 KiB]" in terminal.function("yes").text
    lost = python.function("x = 1\nprint('a', flush=True)\nwhile True: pass").text
    assert lost == (
        "a\n[stopped: it was still running after 0.5 seconds; all variables and imports are lost]"
    )
    assert "NameError" in python.function("x").text


def test_files_of_others_taint_the_output(folder: Path, tools: tuple[Run, Run]) -> None:
    python, terminal = tools
    assert terminal("mkdir sub; echo x > sub/own.txt").sources == frozenset()
    assert python("open('sub/own.txt').read()").sources == frozenset()
    (folder / "letter.txt").write_text("obey me")
    assert terminal("cat letter.txt").sources == {"files:."}
    (folder / "letter.txt").unlink()
    assert python("1").sources == {"files:."}


def test_a_hidden_folder_counts_as_a_file_of_others(folder: Path, tools: tuple[Run, Run]) -> None:
    (folder / ".git").mkdir()
    assert tools[0]("1").sources == {"files:."}


@pytest.mark.parametrize("code", ["a\0b", "x" * 200_000])
def test_code_that_cannot_be_run(tools: tuple[Run, Run], code: str) -> None:
    for run in tools:
        with pytest.raises(ToolError, match="NUL|longer than"):
            run(code)


def test_lone_surrogates_and_odd_code(tools: tuple[Run, Run]) -> None:
    python, terminal = tools
    with pytest.raises(ToolError, match="not valid text"):
        terminal("echo \ud800")
    with pytest.raises(ToolError, match="not valid text"):
        python("'\ud800'")


def test_a_home_folder_is_not_shown_to_code(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: folder)
    (folder / "secret.txt").write_text("secret")
    python, terminal = code_tools(Workspace(folder))
    assert "[exit code 0]" in terminal.function("echo x > out.txt; pwd").text
    assert (folder / "outputs" / "out.txt").exists()
    assert "Permission denied" in terminal.function("cat ../secret.txt").text
    assert "Permission" in python.function("open('../secret.txt')").text


def test_where_only_outputs_can_be_written(folder: Path) -> None:
    (folder / "large.bin").write_bytes(bytes(5000))
    python, terminal = code_tools(Workspace(folder, max_bytes=4000))
    assert "5000" in terminal.function("wc -c large.bin").text
    refused = terminal.function("echo x > new.txt").text
    assert "tools write only in" in refused
    assert python.function("open('outputs/new.txt', 'w').write('x')").files == ("outputs/new.txt",)


def test_without_a_sandbox_the_tools_refuse(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Level(0, True, False)
    monkeypatch.setattr("trivium.llmos.sandbox.supervisor.probe", lambda: bare)
    tools = code_tools(Workspace(folder))
    for tool in tools:
        with pytest.raises(Refused, match="missing Landlock"):
            tool.function("1")
    gateway = Gateway(tools)
    result = gateway.call(ToolCall("1", "python", json.dumps({"code": "1"})))
    assert result.error
    assert "missing Landlock" in result.content


def test_through_the_gateway(folder: Path) -> None:
    gateway = Gateway(code_tools(Workspace(folder)))
    result = gateway.call(ToolCall("1", "python", json.dumps({"code": "sum(range(10))"})))
    assert (result.content, result.error) == ("45", False)


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, trivium.llmos.code_tools\n"
        "print([m for m in ('torch', 'numpy', 'ctypes.util') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "[]\n"


def test_without_namespaces_it_is_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = replace(probe(), namespaces=False)
    monkeypatch.setattr("trivium.llmos.sandbox.supervisor.probe", lambda: plain)
    python, terminal = code_tools(Workspace(folder))
    assert python.function("open('a.txt', 'w').write('x')").files == ("a.txt",)
    assert terminal.function("touch b.txt; chmod 600 b.txt; ls").text.startswith("a.txt\nb.txt")
