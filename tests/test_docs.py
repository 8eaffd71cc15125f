"""The documentation, run for real: what README.md and docs/ show is what happens.

A comment on the line before a fence says what is special about it:

    <!-- published -->                      it needs the published default model
    <!-- published: words may differ -->    and what the model says is only an example
    <!-- not run: REASON -->                REASONS lists the few that count; the command must parse

Each block stands alone: it gets a fresh copy of demo/workspace and a home of its own.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pytest

import trivium
from trivium import cli, files
from trivium.cli import config
from trivium.llmos import sandbox
from trivium.llmos.kernel import Budget

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
TEXT = "\n".join(page.read_text() for page in PAGES)
PUBLISHED, LOOSE, NOT_RUN = "published", "published: words may differ", "not run: "
REASONS = {
    "needs the network",
    "opens an interactive session",
    "sets up the project",
    "takes minutes",
    "takes hours",
}
ENDPOINT = "http://localhost:8080"  # where the documentation has a server

FENCE = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*) -->\n)?```(?P<language>\w+)\n(?P<body>.*?)^```$", re.M | re.S
)
# What the tools and Trivium itself say; all other lines are the model's own words.
OURS = re.compile(r"→ |← |✗ |  |undid |trivium: |not run: ")
SECONDS = re.compile(r"  \(\d+\.\d s\)$", re.M)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    note: str
    language: str
    body: str

    @property
    def runs(self) -> bool:
        return not self.note.startswith(NOT_RUN)

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        yield Block(page, line, match["note"] or "", match["language"], match["body"])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL = [block for block in BLOCKS if block.language in ("bash", "console")]


def cases(blocks: Sequence[Block]) -> Any:
    """Parameters of a test, with the mark of those that need the published model."""
    return pytest.mark.parametrize(
        "block",
        [
            pytest.param(
                block,
                marks=[pytest.mark.published] if block.note.startswith(PUBLISHED) else [],
                id=block.name,
            )
            for block in blocks
        ],
    )


# -- where the blocks run -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The part of the cache that every block may use: computed and compiled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def place(
    request: pytest.FixtureRequest,
    block: Block,
    computed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A workspace and a home for one block."""
    if block.note.startswith(PUBLISHED):
        request.getfixturevalue("pulled_model")
        for name in ("examples", "native"):
            (computed / name).mkdir(exist_ok=True)
            (files.cache_home() / name).symlink_to(computed / name)
    if "llmos.sandbox" in block.body and not sandbox.probe().usable:
        pytest.skip(sandbox.probe().summary)
    workspace = shutil.copytree(ROOT / "demo/workspace", tmp_path / "workspace")
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    own = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", own + os.pathsep + os.environ["PATH"])
    return Path(workspace)


class Server(BaseHTTPRequestHandler):
    """An endpoint with one model, which says hello."""

    def do_GET(self) -> None:
        self._send({"data": [{"id": "qwen3"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "Hello."}
        self._send({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def _send(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def shell(script: str) -> subprocess.CompletedProcess[str]:
    """Standard output and error together, in order, as a person sees them."""
    return subprocess.run(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )


# -- running them -----------------------------------------------------------------------


@cases([block for block in SHELL if block.language == "bash" and block.runs])
def test_commands(block: Block, place: Path, endpoint: str) -> None:
    done = shell("set -euo pipefail\n" + block.body.replace(ENDPOINT, endpoint))
    assert done.returncode == 0, done.stdout


@cases([block for block in SHELL if block.language == "console" and block.runs])
def test_commands_with_output(block: Block, place: Path) -> None:
    steps = list(steps_of(block.body))
    mark = "status=$?; printf '\\001%s\\002' $status; (exit $status)"
    done = shell("\n".join(f"{command}\n{mark}" for command, _ in steps))
    said = re.findall(r"(.*?)\x01(\d+)\x02", done.stdout, re.S)
    assert len(said) == len(steps), done.stdout
    for (command, shown), (output, status) in zip(steps, said, strict=True):
        fails = "trivium: " in shown  # an error is shown
        assert (status != "0") is fails, f"{command} left with {status}:\n{output}"
        assert agrees(shown, output, loose=block.note == LOOSE), f"{command} said:\n{output}"


def steps_of(body: str) -> Iterator[tuple[str, str]]:
    """The commands after `$`, with their here-documents, and the output that is shown."""
    for part in re.split(r"^\$ ", body, flags=re.M)[1:]:
        here = re.match(r"[^\n]*<<'(\w+)'\n.*?^\1\n", part, re.S | re.M)
        end = here.end() if here else part.index("\n") + 1
        yield part[:end].rstrip("\n"), part[end:]


def agrees(shown: str, said: str, *, loose: bool) -> bool:
    """Whether `said` is what the documentation shows. In `shown`, … stands for anything."""
    if not loose:
        return bool(re.fullmatch(pattern(shown.rstrip("\n")), said.rstrip("\n"), re.S))
    ours, theirs = apart(shown)
    really_ours, really_theirs = apart(SECONDS.sub("", said))
    right = re.fullmatch(pattern("\n".join(ours)), "\n".join(really_ours)) is not None
    return right and form("\n".join(theirs)) == form("\n".join(really_theirs))


def pattern(shown: str) -> str:
    return ".*".join(map(re.escape, shown.split("…")))


def apart(text: str) -> tuple[list[str], list[str]]:
    """The lines of the tools, and those of the model."""
    lines = [line for line in text.splitlines() if line.strip()]
    return [x for x in lines if OURS.match(x)], [x for x in lines if not OURS.match(x)]


def form(words: str) -> object:
    """What must hold of the model's words: JSON keeps its keys, numbers keep their form."""
    try:
        value = json.loads(words)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return {key: type(item) for key, item in value.items()}
    return bool(words) if re.search("[a-z]", words) else re.sub(r"\d", "9", words)


@cases([block for block in BLOCKS if block.language == "python"])
def test_python(block: Block, place: Path) -> None:
    shown = re.findall(r"^ *print\(.*\)  # (.*)$|# prints: (.*)$", block.body, re.M)
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(block.body, block.name, "exec"), {"__name__": "__main__"})
    lines = iter(printed.getvalue().splitlines())
    for inline, below in shown:
        expected = inline.removeprefix("prints: ") or below
        assert any(expected == line.strip() for line in lines), (expected, printed.getvalue())


@cases([block for block in BLOCKS if block.language == "toml"])
def test_config(block: Block, place: Path) -> None:
    files.write_atomic(files.config_home() / "config.toml", block.body)
    assert config.read() == tomllib.loads(block.body)


# -- what is not run -----------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_is_understood(page: Path) -> None:
    found = list(blocks_of(page))
    assert len(re.findall("^ *```", page.read_text(), re.M)) == 2 * len(found)
    for block in found:
        assert block.language in ("bash", "console", "python", "toml", "text"), block.name
        if block.runs:
            assert block.note in ("", PUBLISHED, LOOSE), f"{block.name}: {block.note}"
        else:
            assert block.note.removeprefix(NOT_RUN) in REASONS, f"{block.name}: {block.note}"
            assert block.language == "bash", block.name


@cases([block for block in SHELL if not block.runs])
def test_commands_that_are_not_run_parse(block: Block) -> None:
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in block.body.splitlines():
        match shlex.split(line, comments=True):
            case ["trivium", name, *arguments]:
                parse(name, arguments)
            case ["torchrun", "--nproc-per-node", _, "-m", "trivium", name, *arguments]:
                parse(name, arguments)
            case ["make", target, *_]:
                assert re.search(f"^{target}:", makefile, re.M), line
            case ["pip", "install", what]:
                assert set(re.findall(r"\w+", what)) <= set(extras["optional-dependencies"]), line
            case words:
                assert not words or words[0] in ("git", "cd", "source"), line


def parse(name: str, arguments: list[str]) -> None:
    """Raises click.UsageError for an option that is not there."""
    command = cli.main.get_command(click.Context(cli.main), name)
    assert command is not None, name
    command.make_parser(click.Context(command)).parse_args(list(arguments))


def test_the_parsing_notices() -> None:
    parse("run", ["-m", "remote:x", "hello"])
    with pytest.raises(click.NoSuchOption):
        parse("run", ["--no-such-option"])


def test_the_comparison_notices() -> None:
    assert agrees("a … c\n", "a b c\n", loose=False) and not agrees("a\n", "b\n", loose=False)
    shown = '→ calculate("1")\n← 1\nIt is one.\n'
    assert agrees(shown, '→ calculate("1")\n← 1  (0.2 s)\nThat\nis 1.\n', loose=True)
    assert not agrees(shown, '→ calculate("2")\n← 2\nIt is one.\n', loose=True)
    assert not agrees(shown, '→ calculate("1")\n← 1\n', loose=True)
    assert agrees('{"age": 1}\n', '{"age": 22}\n', loose=True)
    assert not agrees('{"age": 1}\n', '{"age": "x"}\n', loose=True)
    assert not agrees("2022-01-01\n", "2022-1-1\n", loose=True)


# -- what must be there -----------------------------------------------------------------------


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_shown_and_run(name: str) -> None:
    assert any(re.search(rf"\btrivium {name}\b", b.body) for b in SHELL if b.runs)


@pytest.mark.parametrize("name", trivium.__all__)
def test_every_public_name_is_explained(name: str) -> None:
    assert f"`{name}`" in TEXT


def test_tables_name_all_there_is() -> None:
    from trivium.cli.chat import COMMANDS
    from trivium.language.families import FAMILIES
    from trivium.language.sampling import Sampling

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [f"`.[{extra}]`" for extra in extras["optional-dependencies"]]
    names += [f"`{architecture}`" for family in FAMILIES for architecture in family.architectures]
    names += [f"`{field.name}`" for field in fields(Sampling)]
    assert [name for name in names if name not in TEXT] == []
    assert [name for name in COMMANDS if not re.search(rf"`{name}[` ]", TEXT)] == []


LIMITS = sandbox.Limits()


@pytest.mark.parametrize(
    "row",
    [
        f"| calls of the model | {Budget.steps} |",
        f"| tokens written | {Budget.tokens} |",
        f"| seconds | {Budget.seconds:g} |",
        f"| wall-clock time of a call | {LIMITS.seconds:g} s |",
        f"| memory, all processes together | {LIMITS.memory >> 30} GiB |",
        f"| processes and threads | {LIMITS.processes} |",
        f"| output | {LIMITS.output_bytes >> 20} MiB |",
        f"| what files may grow by | {LIMITS.disk_bytes >> 30} GiB |",
        f"| open files of a process | {LIMITS.open_files} |",
    ],
)
def test_limits_are_those_of_the_code(row: str) -> None:
    assert row in TEXT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
        slugs = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, target


def tree() -> dict[str, str]:
    """The README's tree: path from the root, with / at the end of a folder → its description."""
    (block,) = (b for b in BLOCKS if b.page.name == "README.md" and b.body.startswith(".\n├"))
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block.body.splitlines()[1:]:
        match = re.match(r"((?:│   |    )*)[├└]── (\S+)\s*(.*)", line)
        assert match, line
        depth = len(match[1]) // 4
        path = "".join(folders[:depth]) + match[2]
        found[path] = match[3]
        if path.endswith("/"):
            folders[depth:] = [match[2]]
    return found


def test_the_tree_names_what_is_there() -> None:
    named = tree()
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert [path for path, words in named.items() if len(words.split()) > 8] == []
    for folder in ("src/trivium/", "src/trivium/language/", "src/trivium/llmos/"):
        there = {f"{folder}{path.name}" for path in (ROOT / folder).glob("*.py")}
        inner = {f"{folder}__init__.py"}
        assert there - set(named) - inner == set(), f"not in the README's tree: {folder}"
