"""The sandbox lets ordinary programs work, refuses where it cannot confine, and has no holes."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from trivium.errors import Refused, TriviumError, UsageError
from trivium.llmos.sandbox import (
    Level,
    PythonSession,
    Sandbox,
    folders,
    jail,
    libc,
    probe,
)
from trivium.llmos.sandbox import level as level_module
from trivium.llmos.sandbox.jail import NamespacesRefused

needs_sandbox = pytest.mark.skipif(not probe().usable, reason=probe().summary)

# Programs that must work: what runs, and what it prints

PYTHON = {
    "big numbers": ("2 ** 200 % 1000007", "446616"),
    "decimals": ("from decimal import Decimal\nDecimal('0.1') + Decimal('0.2')", "Decimal('0.3')"),
    "statistics": ("import statistics\nstatistics.median([3, 1, 2])", "2"),
    "regular expressions": ("import re\nre.findall(r'\\d+', 'a1b22')", "['1', '22']"),
    "hashes": ("import hashlib\nhashlib.sha256(b'').hexdigest()[:8]", "'e3b0c442'"),
    "time zones": (
        "from datetime import datetime\nfrom zoneinfo import ZoneInfo\n"
        "datetime(2024, 7, 1, tzinfo=ZoneInfo('Asia/Shanghai')).utcoffset().seconds",
        "28800",
    ),
    "chinese text": ("len('你好，世界'.encode('gb18030'))", "10"),
    "files": (
        "from pathlib import Path\nPath('文件 📄.txt').write_text('x')\n"
        "[p.name for p in Path('.').glob('*.txt')]",
        "['文件 📄.txt']",
    ),
    "csv and json": (
        "import csv, io, json\njson.dumps(list(csv.DictReader(io.StringIO('a,b\\n1,2\\n'))))",
        '\'[{"a": "1", "b": "2"}]\'',
    ),
    "sqlite": (
        "import sqlite3\nbase = sqlite3.connect('t.db')\nbase.execute('create table t (n)')\n"
        "base.execute('insert into t values (7)')\nbase.commit()\n"
        "base.execute('select n from t').fetchall()",
        "[(7,)]",
    ),
    "temporary files": (
        "import tempfile\nwith tempfile.TemporaryDirectory() as name:\n"
        "    open(name + '/x', 'w').close()\nwith tempfile.TemporaryFile() as file:\n"
        "    n = file.write(b'x')\nn",
        "1",
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(4) as pool:\n    found = sum(pool.map(abs, range(-9, 0)))\nfound",
        "45",
    ),
    "asyncio": ("import asyncio\nasyncio.run(asyncio.sleep(0.01, 'slept'))", "'slept'"),
    "compression": (
        "import gzip, shutil, zipfile\nopen('a.txt', 'w').write('x' * 999)\n"
        "with zipfile.ZipFile('a.zip', 'w', zipfile.ZIP_DEFLATED) as z:\n    z.write('a.txt')\n"
        "shutil.unpack_archive('a.zip', 'out')\nlen(open('out/a.txt').read())",
        "999",
    ),
    "copies and modes": (
        "import os, shutil\nopen('c.txt', 'w').close()\nshutil.copy2('c.txt', 'd.txt')\n"
        "os.chmod('d.txt', 0o600)\nos.rename('d.txt', 'e.txt')\nos.makedirs('x/y/z')\n"
        "shutil.rmtree('x')\nos.path.exists('e.txt')",
        "True",
    ),
    "random numbers": ("import random, secrets\nlen(secrets.token_hex(4))", "8"),
    "processors": ("import os\nos.cpu_count() > 0", "True"),
    "numpy": (
        "import numpy as np\nround(float(np.linalg.det(np.diag([2.0, 3.0]))), 6)",
        "6.0",
    ),
    "numpy with threads": (
        "import numpy as np\na = np.ones((600, 600))\nfloat((a @ a).sum())",
        "216000000.0",
    ),
    "pandas": (
        "import pandas as pd\npd.DataFrame({'a': [1, 2]}).to_csv('p.csv')\n"
        "int(pd.read_csv('p.csv').a.sum())",
        "3",
    ),
    "matplotlib": (
        "import matplotlib.pyplot as plt\nplt.bar(['一', 'b'], [1, 2])\nplt.savefig('bar.png')\n"
        "open('bar.png', 'rb').read(4)[1:]",
        "b'PNG'",
    ),
    "pillow": (
        "from PIL import Image\nImage.new('RGB', (8, 8), 'red').save('i.png')\n"
        "Image.open('i.png').getpixel((1, 1))",
        "(255, 0, 0)",
    ),
    "scipy": (
        "import scipy.optimize\nround(scipy.optimize.brentq(lambda x: x*x-2, 0, 2), 6)",
        "1.414214",
    ),
}

SHELL = {
    "a pipe": ("printf 'b\\na\\nb\\n' | sort | uniq -c | sort -rn | head -1", "2 b"),
    "awk": ("seq 10 | awk '{s += $1} END {print s}'", "55"),
    "grep": ("printf 'one\\ntwo\\n' > g.txt; grep -n two g.txt", "2:two"),
    "sed in place": ("echo old > s.txt; sed -i s/old/new/ s.txt; cat s.txt", "new"),
    "find": ("mkdir -p d/e; touch d/e/f.py; find . -name '*.py'", "./d/e/f.py"),
    "tar": ("echo x > t.txt; tar czf t.tgz t.txt; rm t.txt; tar xzf t.tgz; cat t.txt", "x"),
    "copies": ("echo x > c1; cp -a c1 c2; mv c2 c3; chmod 644 c3; touch c3; cat c3", "x"),
    "a loop": ("for i in 1 2 3; do echo $((i * i)); done | tail -1", "9"),
    "a function": ("f() { echo got $1; }; f it", "got it"),
    "a here document": ("cat <<END\nline\nEND", "line"),
    "in the background": ("(sleep 0.01; echo later) & wait; echo done", "later\ndone"),
    "xargs": ("echo a b c | xargs -n1 echo | wc -l", "3"),
    "python": ("python3 -c 'print(6 * 7)'", "42"),
    "a script": ("echo 'echo run $1' > r.sh; sh r.sh it", "run it"),
    "date": ("date -u -d @0 +%Y", "1970"),
    "unicode": ("echo 你好 > 文件.txt; cat 文件.txt", "你好"),
    "standard input": ("cat", "from outside"),
    "errors": ("ls nothing 2>&1 >/dev/null | grep -c nothing", "1"),
    "kill": ("sleep 20 & kill $!; wait $! 2>/dev/null; echo $?", "143"),
    "bash": ("bash -c 'a=(1 2 3); echo ${#a[@]}' 2>&1", "3"),
    "timeout": ("timeout 0.1 sleep 5; echo $?", "124"),
    "the exit code": ("exit 3", ""),
}


@pytest.fixture(params=["full", "plain"], scope="module")
def level(request: pytest.FixtureRequest) -> Level:
    if request.param == "plain":
        return replace(probe(), namespaces=False)
    if not probe().namespaces:
        pytest.skip(f"no namespaces: {probe().without_namespaces}")
    return probe()


@pytest.fixture(scope="module")
def sandbox(level: Level, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with Sandbox([tmp_path_factory.mktemp("workspace")], level=level) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def session(sandbox: Sandbox) -> Iterator[PythonSession]:
    with PythonSession(sandbox) as session:
        yield session


@needs_sandbox
@pytest.mark.parametrize("name", PYTHON)
def test_python_programs_work(session: PythonSession, name: str) -> None:
    code, value = PYTHON[name]
    for module in ("numpy", "pandas", "matplotlib", "PIL", "scipy"):
        if module in code:
            pytest.importorskip(module)
    done = session.run(code)
    assert (done.error, done.value) == ("", value)


@needs_sandbox
@pytest.mark.parametrize("name", SHELL)
def test_shell_commands_work(sandbox: Sandbox, name: str) -> None:
    command, printed = SHELL[name]
    done = sandbox.run(["sh", "-c", command], stdin=b"from outside")
    assert done.stdout.decode().strip() == printed
    assert (done.stderr, done.reason) == (b"", "exit")
    assert done.returncode == (3 if name == "the exit code" else 0)


@needs_sandbox
def test_files_of_the_program_are_ours(sandbox: Sandbox) -> None:
    sandbox.run(["sh", "-c", "umask 022; mkdir new; echo x > new/file"])
    made = sandbox.writable[0] / "new" / "file"
    assert (made.stat().st_uid, made.stat().st_mode & 0o777) == (os.geteuid(), 0o644)


@needs_sandbox
def test_input_and_output_larger_than_a_pipe(sandbox: Sandbox) -> None:
    data = os.urandom(400_000)
    assert sandbox.run(["cat"], stdin=data).stdout == data
    assert sandbox.run(["true"], stdin=data).returncode == 0


@needs_sandbox
def test_standard_error_apart_or_merged(sandbox: Sandbox) -> None:
    argv = ["sh", "-c", "echo a; echo b >&2; echo c"]
    apart = sandbox.run(argv)
    assert (apart.stdout, apart.stderr) == (b"a\nc\n", b"b\n")
    assert sandbox.run(argv, merge=True).stdout == b"a\nb\nc\n"


@needs_sandbox
@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["no-such-program"], 127, "no-such-program: No such file"),
        (["/etc"], 127, "/etc: Permission denied"),
        (["sh", "-c", "kill -9 $$"], -9, ""),
        (["sh", "-c", "exit 255"], 255, ""),
        (["echo", "x" * 200_000], 127, "Argument list too long"),
    ],
)
def test_how_a_program_ends(sandbox: Sandbox, argv: list[str], code: int, said: str) -> None:
    done = sandbox.run(argv)
    assert done.returncode == code
    assert said in done.stderr.decode()


@needs_sandbox
@pytest.mark.parametrize("argv", [[], ["echo", "a\0b"], ["echo", "\ud800"]])
def test_what_is_no_command_line_is_refused(sandbox: Sandbox, argv: list[str]) -> None:
    with pytest.raises(UsageError, match="not a command line"):
        sandbox.run(argv)


@needs_sandbox
def test_readable_folders_can_be_read_and_not_written(tmp_path: Path, level: Level) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "data.txt").write_text("data")
    (tmp_path / "work").mkdir()
    with Sandbox([tmp_path / "work"], [tmp_path / "given"], level=level) as sandbox:
        done = sandbox.run(["sh", "-c", "cat ../given/data.txt; echo x > ../given/data.txt"])
    assert done.stdout == b"data"
    assert done.returncode != 0
    assert (tmp_path / "given" / "data.txt").read_text() == "data"


@needs_sandbox
def test_two_sandboxes_do_not_see_each_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with Sandbox([tmp_path / "a"]) as one, Sandbox([tmp_path / "b"]) as other:
        (one.scratch / "x").write_text("x")
        done = other.run(["sh", "-c", f"cat {one.scratch}/x {tmp_path}/a/* ; ls {tmp_path}/a"])
    assert done.stdout == b""


@needs_sandbox
@pytest.mark.parametrize("name", [b"\xff\xfe", "工作 📁".encode(), b"new\nline", b"-rf", b"link"])
def test_folders_with_odd_names(tmp_path: Path, level: Level, name: bytes) -> None:
    folder = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    if name == b"link":
        (tmp_path / "real").mkdir()
        folder.symlink_to(tmp_path / "real")
    else:
        folder.mkdir()
    with Sandbox([folder], level=level) as sandbox, PythonSession(sandbox) as session:
        assert sandbox.run(["sh", "-c", "echo x > made"]).stderr == b""
        assert session.run("open('made').read()").value == "'x\\n'"
    assert (folder / "made").read_text() == "x\n"


@needs_sandbox
def test_no_room_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: str) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(TriviumError, match="No space left on device"):
        Sandbox([tmp_path])


@needs_sandbox
def test_threads_may_run_sandboxes_at_the_same_time(tmp_path: Path) -> None:
    with Sandbox([tmp_path]) as sandbox, ThreadPoolExecutor(6) as pool:
        runs = pool.map(lambda n: sandbox.run(["echo", str(n)]).stdout, range(12))
        assert [int(printed) for printed in runs] == list(range(12))


# Folders that code may not be given


@needs_sandbox
@pytest.mark.parametrize(
    ("folder", "error", "message"),
    [
        ("/", Refused, "holds the home folders"),
        ("~", Refused, "your home folder"),
        (sys.prefix, Refused, "the Python that runs Trivium"),
        ("nowhere", UsageError, "nowhere: No such file or directory"),
        (__file__, UsageError, "not a folder"),
    ],
)
def test_folders_code_may_not_write(folder: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Sandbox([Path(folder).expanduser()])
    assert "\n" not in str(caught.value)


@needs_sandbox
def test_code_may_not_read_everything(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="read in all of /"):
        Sandbox([tmp_path], [Path("/")])


def test_a_project_that_is_its_own_environment_is_not_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert str(tmp_path / "lib") in folders.interpreter()
    assert str(tmp_path) not in folders.interpreter()


def test_removal_survives_links_and_hostile_names(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept")
    folder = tmp_path / "gone"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "kept")
    (folder / "a" / "link").symlink_to(tmp_path / "kept")
    for name in (b"\xff\xfe", b"new\nline", b"-rf", b".hidden"):
        (Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))).write_text("x")
    folders.remove(folder)
    assert not folder.exists()
    assert (tmp_path / "kept" / "file").read_text() == "kept"


# Where the kernel cannot confine, nothing runs


@pytest.fixture
def fresh_probe() -> Iterator[None]:
    probe.cache_clear()
    yield
    probe.cache_clear()


@pytest.mark.usefixtures("fresh_probe")
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("landlock.version", "missing Landlock"),
        ("seccomp.available", "missing seccomp"),
        ("architecture", "missing Linux on x86_64 or aarch64"),
    ],
)
def test_without_a_mechanism_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, message: str
) -> None:
    def no_architecture() -> str:
        raise Refused("this is another system")

    answer = {"landlock.version": lambda: 0, "seccomp.available": lambda: False}
    place = f"{level_module.__name__}.{broken}"
    monkeypatch.setattr(place, answer.get(broken, no_architecture))
    assert not probe().usable
    assert message in probe().summary
    with pytest.raises(Refused, match=message):
        Sandbox([tmp_path])


@pytest.mark.usefixtures("fresh_probe")
def test_without_namespaces_the_probe_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def trial(level: Level) -> None:
        if level.namespaces:
            raise NamespacesRefused("unshare: Operation not permitted")

    monkeypatch.setattr("trivium.llmos.sandbox.supervisor.trial", trial)
    if level_module.landlock.version():
        assert (probe().usable, probe().namespaces) == (True, False)
        assert "no namespaces (unshare: Operation not permitted)" in probe().summary


@needs_sandbox
def test_refused_namespaces_are_told_by_the_keeper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = replace(probe(), namespaces=True)  # before it would be probed with what follows
    boot = (
        "import trivium.llmos.sandbox.namespaces as namespaces\n"
        "def refuse(writable): raise OSError('refused')\nnamespaces.enter = refuse\n"
    )
    monkeypatch.setattr(
        jail, "BOOT", jail.BOOT.replace("from trivium", f"exec({boot!r}); from trivium", 1)
    )
    with (
        Sandbox([tmp_path], level=level) as sandbox,
        pytest.raises(NamespacesRefused, match="refused"),
    ):
        sandbox.run(["true"])


def test_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Refused, match="needs Linux on x86_64 or aarch64"):
        libc.architecture()
