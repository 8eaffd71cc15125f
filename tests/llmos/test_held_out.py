"""The held-out requests: what they list as right is right, and none is a copy of an earlier one.

`held_out_requests.jsonl` has a request a line, as people type them:

    tool, arguments   the tool to call (null: none), and every argument object that is as good
    value             what the result must say; a number counts as a number
    steps             operations that a word problem needs
    alternatives      other tools that are as right
    context, files    messages before the request; the workspace (a picture's content is empty)

Models are measured on it, so nothing may be trained or tuned on it. Arguments of the tools that
take free text (a prompt, an instruction, a query) can only be listed in part.
"""

import contextlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from trivium.llmos.builtin import builtin_tools
from trivium.llmos.calculator import calculate
from trivium.llmos.examples import EXAMPLES, NO_TOOL
from trivium.llmos.messages import Message
from trivium.llmos.tools import ToolOutput
from trivium.llmos.workspace import Workspace

FOLDER = Path(__file__).parent
ROWS: list[dict[str, Any]] = [
    json.loads(line)
    for line in (FOLDER / "held_out_requests.jsonl").read_text(encoding="utf-8").splitlines()
]
TOOLS = {  # of each kind; a follow-up may need any
    **dict.fromkeys(("arithmetic", "word_problem_1", "word_problem_2"), "calculate"),
    **dict.fromkeys(("unit", "percentage"), "calculate"),
    **dict.fromkeys(("date", "python"), "python"),
    **{name: name for name in ("list_files", "read_file", "search_files", "write_file")},
    **{name: name for name in ("terminal", "edit_picture", "cut_out", "search_documents")},
    "draw": "draw_picture",
    "none": None,
}
LATER = {  # arguments of the tools that are not among the built-in ones
    "draw_picture": {"prompt"},
    "edit_picture": {"path", "instruction"},
    "cut_out": {"path", "what"},
    "search_documents": {"query"},
}
LEAST = {  # requests
    "word_problem_2": 40,
    "read_file": 20,
    "list_files": 15,
    "search_files": 15,
    "write_file": 12,
    "terminal": 10,
    "none": 60,
    "follow_up": 12,
    **dict.fromkeys(("draw", "edit_picture", "cut_out", "search_documents"), 8),
}
FIELDS = {
    **dict.fromkeys(("id", "request", "value", "kind"), str),
    **dict.fromkeys(("arguments", "alternatives", "context"), list),
    "tool": str | None,
    "steps": int,
    "files": dict,
}
MUST = {"id", "request", "tool", "alternatives", "kind"}
NOTHING = re.compile(r"\[(nothing found|the (file|folder) is empty)")


def rows(*tools: str | None) -> pytest.MarkDecorator:
    chosen = [row for row in ROWS if not tools or row["tool"] in tools]
    return pytest.mark.parametrize("row", chosen, ids=lambda row: row["id"])


def same(result: str, value: str) -> bool:
    """Whether a result gives the value: as a number where it is one, else as text."""
    try:
        wanted = float(value)
    except ValueError:
        return value in result
    numbers = re.findall(r"-?[0-9]+(?:\.[0-9]+)?", result)
    return len(numbers) == 1 and math.isclose(float(numbers[0]), wanted, rel_tol=1e-12)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Workspace]:
    def made(files: dict[str, str]) -> Workspace:
        monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "home"))
        root = tmp_path / "work"
        root.mkdir()
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content, encoding="utf-8")
        monkeypatch.chdir(root)
        return Workspace(root)

    return made


@rows()
def test_a_row_is_well_formed(row: dict[str, Any]) -> None:
    assert MUST <= set(row) <= set(FIELDS)
    assert all(isinstance(value, FIELDS[name]) for name, value in row.items())
    assert row["request"].strip() == row["request"] != ""
    assert row["kind"] == "follow_up" or row["tool"] == TOOLS[row["kind"]]
    assert bool(row.get("arguments")) == (row["tool"] is not None)
    assert row["tool"] not in row["alternatives"]
    assert ("steps" in row) == row["kind"].startswith("word_problem")
    assert ("context" in row) == (row["kind"] == "follow_up")
    assert row["tool"] != "calculate" or "value" in row


@rows(*(tool for tool in TOOLS.values() if tool))
def test_arguments_fit_the_tool(row: dict[str, Any], workspace: Callable[..., Workspace]) -> None:
    tools = {tool.name: tool for tool in builtin_tools(workspace({}))}
    assert set(row["alternatives"]) <= tools.keys() | LATER.keys()
    written = [json.dumps(arguments, sort_keys=True) for arguments in row["arguments"]]
    assert len(set(written)) == len(written)
    for arguments in row["arguments"]:
        if row["tool"] in tools:
            tools[row["tool"]].check(arguments)
        else:
            assert arguments.keys() == LATER[row["tool"]]
            assert all(isinstance(text, str) and text for text in arguments.values())


@rows("calculate")
def test_every_expression_gives_the_value(row: dict[str, Any]) -> None:
    for arguments in row["arguments"]:
        result = calculate.function(**arguments)
        assert isinstance(result, str)
        assert same(result.partition(" (")[0].rstrip("…"), row["value"]), arguments


@pytest.mark.parametrize("row", [row for row in ROWS if "steps" in row], ids=lambda row: row["id"])
def test_a_word_problem_has_as_many_operations_as_it_says(row: dict[str, Any]) -> None:
    expression = row["arguments"][0]["expression"]
    assert row["kind"] == f"word_problem_{row['steps']}"
    assert len(re.findall(r"[-+*/^%]", expression)) == row["steps"]


@rows("python")
def test_the_code_prints_the_value(
    row: dict[str, Any], workspace: Callable[..., Workspace]
) -> None:
    workspace(row.get("files", {}))
    for arguments in row["arguments"]:
        code = compile(arguments["code"], row["id"], "exec")
        if "value" in row:  # the code is ours: no sandbox
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(code, {})
            assert same(printed.getvalue().strip(), row["value"]) or (
                row["value"] in printed.getvalue()
            )


@rows("read_file", "list_files", "search_files")
def test_every_call_finds_something_in_the_files(
    row: dict[str, Any], workspace: Callable[..., Workspace]
) -> None:
    tools = {tool.name: tool for tool in builtin_tools(workspace(row["files"]))}
    for arguments in row["arguments"]:
        output = tools[row["tool"]].function(**arguments)
        assert isinstance(output, ToolOutput)
        assert output.text and not NOTHING.match(output.text)


@rows("edit_picture", "cut_out")
def test_the_picture_is_there(row: dict[str, Any]) -> None:
    paths = {arguments["path"].removeprefix("./") for arguments in row["arguments"]}
    assert len(paths) == 1 and paths <= row["files"].keys()


@pytest.mark.parametrize(
    "row", [row for row in ROWS if "context" in row], ids=lambda row: row["id"]
)
def test_a_context_is_a_conversation(row: dict[str, Any]) -> None:
    messages = [Message.from_json(record) for record in row["context"]]
    assert [message.to_json() for message in messages] == row["context"]
    assert messages[0].role == "user" and messages[-1].role == "assistant" and messages[-1].text
    for before, message in zip(messages, messages[1:], strict=False):
        calls = [(call.id, call.name) for call in before.tool_calls]
        answers = [(message.tool_call_id, message.name)] if message.role == "tool" else []
        assert calls == answers
        assert all(call.parsed() for call in before.tool_calls)


def test_the_spread() -> None:
    kinds = Counter(row["kind"] for row in ROWS)
    assert all(kinds[kind] >= least for kind, least in LEAST.items())
    assert sum(row["tool"] == "calculate" for row in ROWS) >= 90
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    chinese = sum(bool(re.search(r"[一-鿿]", row["request"])) for row in ROWS)
    assert 0.12 < chinese / len(ROWS) < 0.2


@cache
def pairs(text: str) -> frozenset[str]:
    """Letters and digits side by side, regardless of case, spaces and punctuation."""
    plain = "".join(re.findall(r"\w", text.casefold()))
    return frozenset(plain[at : at + 2] for at in range(max(len(plain) - 1, 1)))


def alike(one: str, other: str) -> float:
    """Dice's coefficient of the pairs: 1 where two texts have the same ones."""
    shared = len(pairs(one) & pairs(other))
    return 2 * shared / (len(pairs(one)) + len(pairs(other)))


def earlier() -> Iterator[str]:
    yield from NO_TOOL
    for examples in EXAMPLES.values():
        yield from (request for request, _ in examples)
    for line in (FOLDER / "requests.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)["request"]


def test_no_request_repeats_another() -> None:
    assert alike("What's 12 * 7?", "whats 12*7") == 1
    assert alike("Who wrote Hamlet?", "what is a variable in python") < 0.3
    before = [*earlier()]
    for row in ROWS:
        nearest = max(before, key=lambda text: alike(text, row["request"]))
        likeness = alike(nearest, row["request"])
        follows = "context" in row  # short by nature, and told apart by what was said before
        assert likeness < (1 if follows else 0.7), (row["id"], row["request"], nearest, likeness)
        before.append(row["request"])
