"""The frame of the command line: laziness, help, errors, exit codes, options, settings."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import trivium
from trivium import cli
from trivium.cli import config, options
from trivium.errors import NotFound, Refused, TriviumError, UsageError

HEAVY = ("torch", "numpy", "httpx", "rich", "prompt_toolkit", "huggingface_hub", "jsonschema")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("TRIVIUM_MODEL", "TRIVIUM_OFFLINE", "TRIVIUM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs a function as the command `trivium try`."""

    def run(function: Callable[..., Any], *arguments: str, **settings: Any) -> Result:
        made = function if isinstance(function, click.Command) else click.command()(function)
        monkeypatch.setattr(sys.modules[__name__], "made", made, raising=False)
        monkeypatch.setitem(sys.modules, "made_command", sys.modules[__name__])
        monkeypatch.setitem(cli.COMMANDS, "try", ("made_command:made", "Try."))
        return CliRunner().invoke(cli.main, ["try", *arguments], **settings)

    yield run


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "statement",
    [
        "import trivium",
        "import trivium; dir(trivium)",
        "from trivium import cli",
        "from trivium.cli import main; main(['--help'], standalone_mode=False)",
        "from trivium.cli import main; main(['--version'], standalone_mode=False)",
        "from trivium.cli import main; main(['models'], standalone_mode=False)",
        "from trivium.cli import main; main(['pull', '--help'], standalone_mode=False)",
        "from trivium import hub",
    ],
)
def test_nothing_heavy_is_loaded(statement: str) -> None:
    done = process("-c", f"{statement}\nimport sys\nprint('\\n' + ' '.join(sys.modules))")
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.splitlines()[-1].split()
    assert [name for name in HEAVY if name in loaded] == []


@pytest.mark.parametrize("name", [name for name in trivium.__all__ if name != "__version__"])
def test_public_names(name: str) -> None:
    home = vars(trivium)["_HOMES"][name]
    if home.startswith("language"):
        pytest.importorskip("torch")
    value = getattr(trivium, name)
    assert getattr(value, "__name__", name) == name


def test_public_names_are_the_typed_ones() -> None:
    tree = ast.parse(Path(trivium.__file__).read_text())
    imported = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("trivium")
        for alias in node.names
    }
    homes = vars(trivium)["_HOMES"]
    assert imported == {name: f"trivium.{home}" for name, home in homes.items()}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        trivium.nonsense  # noqa: B018


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_table_says_what_the_commands_say(name: str) -> None:
    command = cli.main.get_command(click.Context(cli.main), name)
    assert command is not None
    assert command.get_short_help_str(1000) == cli.COMMANDS[name][1]
    assert command.name == name


def test_help_has_one_line_for_each_command() -> None:
    result = CliRunner().invoke(cli.main, ["--help"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    for name, (_, summary) in cli.COMMANDS.items():
        assert [line.split() for line in lines].count([name, *summary.split()]) == 1


@pytest.mark.parametrize("alias", ["ls", "list"])
def test_aliases(alias: str) -> None:
    result = CliRunner().invoke(cli.main, [alias, "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)


def test_version() -> None:
    result = CliRunner().invoke(cli.main, ["--version"])
    assert result.stdout == f"trivium {trivium.__version__}\n"
    done = process("-m", "trivium", "--version")
    assert done.stdout == result.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["chta"], "trivium: no command 'chta'; did you mean chat? (see `trivium --help`)"),
        (["--nonsense"], "trivium: No such option '--nonsense' (see `trivium --help`)"),
        (["rm"], "trivium: Missing argument 'NAME...' (see `trivium rm --help`)"),
        (["模型🙂"], "trivium: no command '模型🙂' (see `trivium --help`)"),
        (["\udcff"], "trivium: no command '\\udcff' (see `trivium --help`)"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli.main, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == message + "\n"


@pytest.mark.parametrize(
    "error, code, message",
    [
        (TriviumError("broken"), 1, "trivium: broken"),
        (UsageError("wrong"), 2, "trivium: wrong"),
        (Refused("no"), 3, "trivium: no"),
        (NotFound("gone\nor never here"), 4, "trivium: gone or never here"),
        (NotFound("no \x1b]0;title\x07file\u202e"), 4, "trivium: no file\n"),
        (click.UsageError("bad"), 2, "trivium: bad"),
        (KeyError("x"), 1, "trivium: KeyError: 'x' (TRIVIUM_DEBUG=1 shows where)"),
        (RecursionError("deep"), 1, "trivium: RecursionError: deep (TRIVIUM_DEBUG=1 shows where)"),
        (OSError(28, "No space"), 1, "trivium: [Errno 28] No space (TRIVIUM_DEBUG=1 shows where)"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), 1, "trivium: UnicodeDecodeError"),
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
        (BrokenPipeError(), 1, ""),
        (SystemExit(7), 7, ""),
    ],
)
def test_failures_are_one_line(
    command: Callable[..., Result], error: BaseException, code: int, message: str
) -> None:
    def fail() -> None:
        raise error

    result = command(fail)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.lstrip().startswith(message)
    assert len(result.stderr.strip().splitlines()) == bool(message)


def test_debug_shows_the_traceback(command: Callable[..., Result]) -> None:
    def fail() -> None:
        try:
            raise KeyError("cause")
        except KeyError as error:
            raise NotFound("gone") from error

    result = command(fail, env={"TRIVIUM_DEBUG": "1"})
    assert result.exit_code == 4
    assert "KeyError: 'cause'" in result.stderr and "in fail" in result.stderr
    assert result.stderr.endswith("\ntrivium: gone\n")


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_chooses_its_exit_code(command: Callable[..., Result], code: int) -> None:
    result = command(lambda: click.get_current_context().exit(code))
    assert (result.exit_code, result.output) == (code, "")


@pytest.mark.parametrize(
    "given, found",
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_that_wait_leave_the_core_to_others(
    given: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, given.get(name, ""))
        if name not in given:
            monkeypatch.delenv(name)
    CliRunner().invoke(cli.main, ["--version"])
    assert os.environ.get("GOMP_SPINCOUNT") == found


def test_a_closed_pipe_is_silent() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "trivium", "models", "--json"],
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    "closed, code, answer",
    [("0<&-", 0, "[\n"), ("1>&-", 1, ""), ("2>&-", 0, "[\n"), ("0<&- 1>&- 2>&-", 1, "")],
)
def test_closed_streams(closed: str, code: int, answer: str) -> None:
    line = f'exec "$0" -m trivium models --json {closed}'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout[:2]) == (code, answer)
    assert done.stderr.count("\n") == (closed == "1>&-")
    assert "AttributeError" not in done.stderr


def test_no_file_takes_the_place_of_a_closed_stream() -> None:
    code = "import os\nfrom trivium.cli import main\nmain(['--version'], standalone_mode=False)\n"
    code += "raise SystemExit(os.open(os.devnull, os.O_RDONLY) > 2)"
    line = 'exec "$0" -c "$1" 0<&- 2>&-'
    done = subprocess.run(["sh", "-c", line, sys.executable, code], capture_output=True, timeout=60)
    assert done.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stderr() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "trivium", "show", "nothing"]
        assert subprocess.run(command, stderr=full, timeout=60).returncode == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "trivium", "models"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("trivium: [Errno 28] No space left on device")
    assert done.stderr.count("\n") == 1


def test_a_terminal_without_unicode() -> None:
    done = process("-m", "trivium", "show", "模型🙂", PYTHONIOENCODING="latin-1")
    assert done.returncode == 4
    assert done.stderr.startswith(r"trivium: no model '\u6a21\u578b\U0001f642'")


@click.command()
@options.model
@options.system
@options.attach
@options.continue_
@options.seed
@options.device
@options.threads
@options.offline
@options.as_json
def everything(**values: Any) -> None:
    click.echo(json.dumps(values, default=str))


def test_options(command: Callable[..., Result], tmp_path: Path) -> None:
    note = tmp_path / "笔记 🙂.txt"
    note.touch()
    given = ["-m", "x", "-s", "be brief", "-a", str(note), "-a", str(note), "-c", "--seed", "7"]
    result = command(everything, *given, "--device", "cuda:1", "--threads", "2", "--json")
    assert json.loads(result.stdout) == {
        "model": "x",
        "system": "be brief",
        "attach": [str(note), str(note)],
        "continue_": True,
        "seed": 7,
        "device": "cuda:1",
        "threads": 2,
        "offline": False,
        "as_json": True,
    }
    result = command(everything, env={"TRIVIUM_OFFLINE": "1"})
    assert json.loads(result.stdout)["offline"] is True


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--seed", "-1"], 2, "--seed"),
        (["--seed", "x"], 2, "--seed"),
        (["--threads", "0"], 2, "--threads"),
        (["--device", "gpu"], 2, "'gpu' is not one of auto, cpu, cuda, cuda:N, mps"),
        (["--device", "cuda:"], 2, "'cuda:' is not one of"),
        (["-a", "missing"], 4, "no such file: missing"),
        (["-a", "/"], 2, "/ is a folder"),
    ],
)
def test_wrong_options(
    command: Callable[..., Result], arguments: list[str], code: int, message: str
) -> None:
    result = command(everything, *arguments)
    assert result.exit_code == code
    assert message in result.stderr and result.stderr.count("\n") == 1


def chosen(command: Callable[..., Result], *arguments: str, **environment: str) -> str:
    result = command(everything, *arguments, env=environment)
    assert result.exit_code == 0, result.stderr
    return str(json.loads(result.stdout)["model"])


def test_flag_then_environment_then_file_then_default(
    command: Callable[..., Result], home: Path
) -> None:
    assert chosen(command) == chosen(command, TRIVIUM_MODEL="") == "smollm2-135m-instruct"
    (home / "config").mkdir()
    (home / "config" / "config.toml").write_text('model = "模型"\n', encoding="utf-8")
    assert chosen(command) == "模型"
    assert chosen(command, TRIVIUM_MODEL="variable") == "variable"
    assert chosen(command, "-m", "flag", TRIVIUM_MODEL="variable") == "flag"


@pytest.mark.parametrize(
    "content, message",
    [
        (b'model = "x"\nmodel = \n', "is not valid TOML: .*line 2"),
        (b"model = 7", "model must be a str, not 7"),
        (b"modle = 'x'", "unknown key 'modle'; known: model"),
        (b"\xff\xfe", "cannot read .*config.toml"),
        (None, "cannot read .*config.toml"),
    ],
)
def test_a_broken_config_file(
    command: Callable[..., Result], home: Path, content: bytes | None, message: str
) -> None:
    path = home / "config" / "config.toml"
    path.parent.mkdir()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        config.read()
    result = command(everything)
    assert result.exit_code == 2 and str(path) in result.stderr
    assert command(everything, "--help").exit_code == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    result = CliRunner().invoke(cli.main, ["completion", shell])
    assert result.exit_code == 0
    assert f"_TRIVIUM_COMPLETE={shell}_complete" in result.stdout
    guessed = CliRunner().invoke(cli.main, ["completion"], env={"SHELL": f"/usr/bin/{shell}"})
    assert guessed.stdout == result.stdout


def test_completion_of_an_unknown_shell() -> None:
    result = CliRunner().invoke(cli.main, ["completion"], env={"SHELL": "/bin/tcsh"})
    assert result.exit_code == 2
    assert result.stderr == (
        "trivium: the shell 'tcsh' has no completion script: give one of bash, zsh, fish\n"
    )


@pytest.mark.parametrize(
    "words, word, expected",
    [
        ("trivium do", 1, ["doctor"]),
        ("trivium pull --of", 2, ["--offline"]),
        ("trivium run -m smol", 3, ["smollm2-135m-instruct"]),
    ],
)
def test_the_shell_completes(words: str, word: int, expected: list[str]) -> None:
    done = process(
        "-m",
        "trivium",
        _TRIVIUM_COMPLETE="bash_complete",
        COMP_WORDS=words,
        COMP_CWORD=str(word),
    )
    assert [line.partition(",")[2] for line in done.stdout.splitlines()] == expected, done.stderr


def test_completing_with_a_broken_config_says_nothing(home: Path) -> None:
    (home / "config").mkdir()
    (home / "config" / "config.toml").write_text("model = ")
    done = process(
        "-m",
        "trivium",
        TRIVIUM_HOME=str(home),
        _TRIVIUM_COMPLETE="bash_complete",
        COMP_WORDS="trivium run -m smol",
        COMP_CWORD="3",
    )
    assert done.stderr == ""


def test_completing_a_command_imports_none() -> None:
    code = "from trivium.cli import main\ntry: main()\nfinally:\n import sys\n print(*sys.modules)"
    done = process(
        "-c", code, _TRIVIUM_COMPLETE="bash_complete", COMP_WORDS="trivium m", COMP_CWORD="1"
    )
    assert done.stdout.startswith("plain,models\n")
    assert "trivium.hub" not in done.stdout.split()
    assert importlib.util.find_spec("trivium.hub")
