"""The Python session: a notebook in a box, whose replies nobody trusts."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trivium.errors import TriviumError
from trivium.llmos.sandbox import Limits, PythonSession, Sandbox, probe
from trivium.llmos.sandbox.session import REPLY_BYTES

pytestmark = pytest.mark.skipif(not probe().usable, reason=probe().summary)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def session(folder: Path) -> Iterator[PythonSession]:
    with Sandbox([folder], limits=Limits(seconds=20)) as sandbox, PythonSession(sandbox) as session:
        yield session


def test_state_is_kept(session: PythonSession) -> None:
    assert session.run("import math\nx = 2 ** 100").value == ""
    assert session.run("x").value == str(2**100)
    assert session.run("math.sqrt(x) == 2.0 ** 50").value == "True"
    session.run("def double(n):\n    return 2 * n")
    assert session.run("double(21)").value == "42"


@pytest.mark.parametrize(
    ("code", "text", "value"),
    [
        ("print('a')\n'b'", "a\n", "'b'"),
        ("1 + 1\n2 + 2", "", "4"),
        ("y = 5", "", ""),
        ("None", "", ""),
        ("", "", ""),
        ("# only a comment", "", ""),
        ("'你好 🌍'", "", "'你好 🌍'"),
        ("print('你好')", "你好\n", ""),
        ("import sys\nprint('1'); print('2', file=sys.stderr); print('3')", "1\n2\n3\n", ""),
        ("print('no newline', end='')", "no newline", ""),
        ("import sys\nsys.stdout = None", "", ""),
        ("print('back')", "back\n", ""),
        ("print('\\ud800')", "\\ud800\n", ""),
        ("'\\ud800'", "", "'\\ud800'"),
        ("for i in range(3):\n    i", "", ""),
        ("__name__", "", "'__main__'"),
        ("async def f():\n    return 7\nimport asyncio\nasyncio.run(f())", "", "7"),
        ("with open('n.txt', 'w') as f:\n    f.write('x')\nopen('n.txt').read()", "", "'x'"),
    ],
)
def test_what_a_cell_gives(session: PythonSession, code: str, text: str, value: str) -> None:
    done = session.run(code)
    assert (done.text, done.value, done.error, done.lost) == (text, value, "", "")
    assert done.reason == "exit"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("1/0", "  line 1: 1/0\nZeroDivisionError: division by zero"),
        (
            "def f(x):\n    return 1 / x\n\nf(0)",
            "  line 4: f(0)\n  line 2 in f: return 1 / x\nZeroDivisionError: division by zero",
        ),
        ("import json\njson.loads('{')", "  line 2: json.loads('{')\nJSONDecodeError: "),
        ("if x", "  line 1: if x\n              ^\nSyntaxError: expected ':'"),
        ("raise SystemExit(3)", "  line 1: raise SystemExit(3)\nSystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("input()", "EOFError"),
        (
            "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd",
            "Odd: (its message cannot be shown)",
        ),
        ("int('\\ud800')", "ValueError"),
        ("x = '\\x00'; eval(x)", "line 1"),
    ],
)
def test_errors_show_the_lines_of_the_cell_only(
    session: PythonSession, code: str, error: str
) -> None:
    session.run("x = 1")
    done = session.run(code)
    assert error in done.error
    assert "worker.py" not in done.error
    assert done.error.count("\n") < 12
    assert session.run("x").value[:1] in ("1", "'")


def test_long_values_and_errors_are_cut(session: PythonSession) -> None:
    assert len(session.run("'a' * 10**6").value) <= 20_000
    assert len(session.run("raise ValueError('a' * 10**6)").error) <= 5_000


def test_tables(session: PythonSession) -> None:
    pytest.importorskip("pandas")
    done = session.run("import pandas as pd\npd.DataFrame({'name': ['李', 'Bo'], 'n': [1, 2]})")
    assert done.value.splitlines()[1].split() == ["0", "李", "1"]
    wide = session.run("pd.DataFrame([range(100)] * 1000)").value
    assert len(wide) < 10_000


def test_plots_become_files_that_overwrite_nothing(session: PythonSession, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    (folder / "plot-1.png").write_text("mine")
    done = session.run(
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nplt.figure()\nplt.plot([3])"
    )
    assert (done.plots, done.error, done.text) == (("plot-2.png", "plot-3.png"), "", "")
    assert (folder / "plot-1.png").read_text() == "mine"
    assert (folder / "plot-2.png").read_bytes().startswith(b"\x89PNG")
    saved = session.run("plt.plot([1, 2])\nplt.savefig('chart.png')")
    assert saved.plots == ()
    assert (folder / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert session.run("1").plots == ()


# Code that ends the session, and what is said about it


@pytest.mark.parametrize(
    ("code", "lost"),
    [
        ("import os\nos._exit(3)", "exit status 3"),
        ("import os\nos.kill(os.getpid(), 9)", "SIGKILL"),
        ("import os\nos.abort()", "SIGABRT"),
        ("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
        ("import os\nos.closerange(0, 100)", "exit status 1"),
        ("import os\nos.close(4)", "exit status 1"),
        ("while True: pass", "still running after 0.5 seconds"),
        ("import time\nwhile True:\n try: time.sleep(1)\n except BaseException: pass", "running"),
        ("import os\nos.write(4, b'x' * 1000)", "pipe that carries results"),
        ("import os\nos.write(4, b'\\xff' * 8)", "pipe that carries results"),
        ("import os\nos.write(4, b'\\x00\\x00\\x00\\x02{}')", "pipe that carries results"),
        (
            "import os, threading as t\nt.Thread(target=os._exit, args=(5,)).start()\nwhile 1: 1",
            "5",
        ),
    ],
)
def test_the_end_of_a_session_is_told(session: PythonSession, code: str, lost: str) -> None:
    session.run("kept = 1")
    assert lost in session.run("print('before')\n" + code, seconds=0.5).lost
    fresh = session.run("'kept' in globals()")
    assert (fresh.value, fresh.lost) == ("False", "")


def forged(**fields: object) -> str:
    """A cell that answers in the worker's place."""
    return f"""
import inspect, json, os
frame = inspect.currentframe()
while "job" not in frame.f_locals:
    frame = frame.f_back
record = {{"token": frame.f_locals["job"]["token"], "value": "", "error": "", "plots": []}}
record.update({fields!r})
data = json.dumps(record).encode()
data = len(data).to_bytes(4, "big") + data
"""


WAIT = "\nimport time\ntime.sleep(5)"


@pytest.mark.parametrize(
    ("fields", "accepted"),
    [
        ({"value": "42"}, True),
        ({"value": "\ud800"}, True),
        ({"value": 42}, False),
        ({"error": None}, False),
        ({"plots": "plot-1.png"}, False),
        ({"token": "0" * 32}, False),
        ({"value": "x" * REPLY_BYTES}, False),
        ({"plots": ["../../etc/passwd", "/etc/passwd", "plot-9.png", 3, None, "link.png"]}, True),
    ],
)
def test_a_forged_reply_harms_only_itself(
    session: PythonSession, fields: dict, accepted: bool
) -> None:
    done = session.run(forged(**fields) + "os.write(4, data)" + WAIT, seconds=2)
    if accepted:
        assert (done.reason, done.lost, done.plots) == ("exit", "", ())
        json.dumps([done.value, done.text]).encode()
        done.value.encode()
    else:
        assert "pipe that carries results" in done.lost
    session.close()
    assert session.run("6 * 7").value == "42"


def test_a_reply_for_the_next_call_is_refused(session: PythonSession) -> None:
    done = session.run(forged(value="first") + "os.write(4, data + data)")
    assert done.lost
    # One that comes later lies in the pipe when the next call is made.
    late = "import threading, time\nthreading.Timer(0, lambda: os.write(4, data)).start()"
    session.run(forged(value="stale") + late)
    later = session.run("'fresh'")
    assert later.value == "'fresh'" or later.lost


def test_deeply_nested_json_is_refused(session: PythonSession) -> None:
    code = "import os\ndata = b'[' * 100000\nos.write(4, len(data).to_bytes(4, 'big') + data)"
    assert "pipe that carries results" in session.run(code + WAIT, seconds=2).lost


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86")
def test_calls_of_another_architecture_are_fatal(session: PythonSession) -> None:
    code = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")  # mov eax, 20; int 0x80; ret
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
ctypes.CFUNCTYPE(ctypes.c_int)(address)()
"""
    assert "SIGSYS" in session.run(code).lost


def test_the_parents_secrets_are_not_in_the_worker(folder: Path) -> None:
    """The worker is a fork of the keeper: nothing of Trivium's memory or environment is in it."""
    code = (
        "from pathlib import Path; import sys\n"
        "from trivium.llmos.sandbox import PythonSession, Sandbox\n"
        "session = PythonSession(Sandbox([Path(sys.argv[1])]))\n"
        "print(session.run('import os; sorted(os.environ)').value)\n"
        "print(session.run('import sys; sorted(m for m in sys.modules if \"trivium\" in m)').value)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder],
        env=os.environ | {"OPENAI_API_KEY": "secret", "TZ": "Asia/Shanghai"},
        capture_output=True,
        text=True,
        check=True,
    )
    environment = done.stdout.splitlines()[0]
    assert "TZ" in environment
    assert "KEY" not in environment


def test_a_session_that_cannot_be_set_up_says_so(folder: Path) -> None:
    with (
        Sandbox([folder]) as sandbox,
        PythonSession(sandbox, cwd=folder / "gone") as session,
        pytest.raises(TriviumError, match="could not be set up: .*gone"),
    ):
        session.run("1")


def test_a_session_left_alone_is_ended(folder: Path) -> None:
    with Sandbox([folder]) as sandbox:
        session = PythonSession(sandbox)
        session.start()
        keeper = session._worker.jail.process  # type: ignore[union-attr]
        del session
        assert keeper.returncode is not None
