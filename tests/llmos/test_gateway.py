"""The one door: invariants I1, I2 and I8 of the LLM OS, the policy and its mutants, the log."""

import ast
import inspect
import json
import multiprocessing
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.errors import Refused, TriviumError
from trivium.llmos import audit, gateway
from trivium.llmos.confirmation import Request, visible
from trivium.llmos.gateway import Decision, Gateway, always_ask, decide, never_ask
from trivium.llmos.labels import Label
from trivium.llmos.messages import ToolCall, ToolResult
from trivium.llmos.tools import Tool, ToolError, ToolOutput, tool


class Desk:
    """Tools that note what they were given, and one of each way to go wrong."""

    def __init__(self) -> None:
        self.written: list[str] = []

        @tool
        def add(a: int, b: int = 1) -> str:
            """Add two numbers."""
            return str(a + b)

        @tool(effect="read")
        def read(path: str) -> ToolOutput:
            """Read a file."""
            return ToolOutput("text of a stranger", sources=frozenset({f"file:{path}"}))

        @tool(effect="write")
        def write(text: str) -> ToolOutput:
            """Write a text."""
            self.written.append(text)
            return ToolOutput("done", files=("a.txt",))

        @tool(effect="execute")
        def run(code: str) -> str:
            """Run code: the word is raised as what it names."""
            failures: dict[str, Exception] = {
                "tool": ToolError("line 1 is wrong", frozenset({"file:b"})),
                "refused": Refused("no sandbox on this machine"),
                "defect": KeyError("secret"),
            }
            if code in failures:
                raise failures[code]
            return None if code == "none" else "ran"  # type: ignore[return-value]

        self.tools: tuple[Tool, ...] = (add, read, write, run)


def call(name: str, arguments: Any = None, id: str = "1") -> ToolCall:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    return ToolCall(id, name, text)


TAINTED = Label(frozenset({"file:a"}))


def effect(name: Any) -> Tool:
    return Tool("t", "d", {}, lambda: "", name)


TABLE = [
    # policy, effect, label, verdict
    ("decide", "none", Label(), "allow"),
    ("decide", "none", TAINTED, "allow"),
    ("decide", "read", Label(), "allow"),
    ("decide", "read", TAINTED, "allow"),
    ("decide", "write", Label(), "allow"),
    ("decide", "write", TAINTED, "ask"),
    ("decide", "execute", Label(), "allow"),
    ("decide", "execute", TAINTED, "ask"),
    ("decide", "network", Label(), "deny"),
    ("decide", "network", TAINTED, "deny"),
    ("always_ask", "none", TAINTED, "allow"),
    ("always_ask", "read", Label(), "ask"),
    ("always_ask", "write", Label(), "ask"),
    ("always_ask", "execute", TAINTED, "ask"),
    ("always_ask", "network", Label(), "ask"),
    ("never_ask", "none", TAINTED, "allow"),
    ("never_ask", "read", TAINTED, "allow"),
    ("never_ask", "write", TAINTED, "allow"),
    ("never_ask", "execute", TAINTED, "allow"),
]


def agrees_with_the_table(policies: dict[str, Any]) -> bool:
    return all(
        policies[policy](effect(name), {}, label).verdict == verdict
        for policy, name, label, verdict in TABLE
        if policy in policies
    )


def test_policies_follow_the_table() -> None:
    assert agrees_with_the_table(
        {"decide": decide, "always_ask": always_ask, "never_ask": never_ask}
    )


class Flip(ast.NodeTransformer):
    """Turns the n-th comparison, connective, negation or verdict of a function round."""

    def __init__(self, target: int) -> None:
        self.target, self.seen = target, -1

    def _hit(self) -> bool:
        self.seen += 1
        return self.seen == self.target

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if self._hit():
            turned: dict[type, ast.cmpop] = {ast.Eq: ast.NotEq(), ast.NotEq: ast.Eq()}
            node.ops = [turned[type(node.ops[0])]]
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        if self._hit():
            node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return node.operand if isinstance(node.op, ast.Not) and self._hit() else node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        turned = {"allow": "ask", "ask": "allow", "deny": "allow", "none": "x", "read": "write"}
        turned |= {"write": "read", "execute": "none"}
        if node.value in turned and self._hit():
            return ast.copy_location(ast.Constant(turned[node.value]), node)
        return node


def mutants(function: Callable[..., Any]) -> list[tuple[str, Callable[..., Any]]]:
    source = textwrap.dedent(inspect.getsource(function))
    found: list[tuple[str, Callable[..., Any]]] = []
    while True:
        tree = ast.parse(source)
        tree.body[0].body = tree.body[0].body[1:]  # type: ignore[attr-defined] # the docstring
        flip = Flip(len(found))
        tree = ast.fix_missing_locations(flip.visit(tree))
        if flip.seen < flip.target:
            return found
        names = dict(vars(gateway))
        exec(compile(tree, "<mutant>", "exec"), names)
        found.append((ast.unparse(tree), names[function.__name__]))


@pytest.mark.parametrize("policy", [decide, always_ask, never_ask])
def test_every_mutant_of_a_policy_is_caught(policy: Callable[..., Any]) -> None:
    name = policy.__name__
    all_mutants = mutants(policy)
    assert len(all_mutants) >= {"decide": 14, "always_ask": 3, "never_ask": 1}[name]
    survivors = [text for text, mutant in all_mutants if agrees_with_the_table({name: mutant})]
    assert survivors == []


@given(st.frozensets(st.text(min_size=1)), st.frozensets(st.text(min_size=1)))
def test_more_sources_never_permit_more(first: frozenset[str], more: frozenset[str]) -> None:
    order = ["allow", "ask", "deny"]
    for name in ("none", "read", "write", "execute", "network"):
        before = decide(effect(name), {}, Label(first)).verdict
        after = decide(effect(name), {}, Label(first | more)).verdict
        assert order.index(after) >= order.index(before)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ad", {}, "there is no tool 'ad'; did you mean 'add'? the tools are: add, read,"),
        ("", {}, "there is no tool ''; the tools are"),
        ("add", "{", "the arguments of add are not valid JSON"),
        ("add", "[1, 2]", "the arguments of add must be a JSON object, not [1,2]"),
        ("add", "[" * 100_000, "the arguments of add are not valid JSON"),
        ("add", '{"a": NaN}', "not valid JSON: NaN is not JSON"),
        ("add", '{"a": 1e999}', "the arguments of add are not valid JSON"),
        ("add", '{"a": "\\ud800"}', "the arguments of add are not valid JSON"),
        ("add", '{"a": ' + "9" * 5000 + "}", "the arguments of add are not valid JSON"),
        ("add", "", "argument 'a' is missing. Usage: add(a: integer, b: integer = 1)"),
        ("add", {"a": "1"}, "argument 'a' must be integer, not '1'"),
        ("add", {"a": 1, "c": 2}, "unknown argument 'c'"),
    ],
)
def test_mistakes_of_the_model_come_back_as_text(name: str, arguments: Any, message: str) -> None:
    result = Gateway(Desk().tools).call(call(name, arguments))
    assert result.error and result.content.startswith("error: ")
    assert message in result.content
    assert result.sources == frozenset()


def test_a_good_call() -> None:
    door = Gateway(Desk().tools)
    asked = call("add", {"a": 2})
    result = door.call(asked)
    assert (result.call, result.content, result.error) == (asked, "3", False)
    assert result.seconds >= 0
    assert (door.label, door.refusals) == (Label(), 0)


@pytest.mark.parametrize(
    ("code", "content", "sources"),
    [
        ("ok", "ran", {"tool:run"}),
        ("tool", "error: line 1 is wrong", {"file:b"}),
        ("refused", "error: no sandbox on this machine", set()),
        (
            "defect",
            "error: run failed by a defect of its own, not of the call (Key",
            {"tool:run"},
        ),
        ("none", "error: run failed by a defect of its own", {"tool:run"}),
    ],
)
def test_what_tools_return_or_raise(
    code: str, content: str, sources: set[str], tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    door = Gateway(Desk().tools, log=log)
    result = door.call(call("run", {"code": code}))
    assert result.content.startswith(content)
    assert result.error == (code != "ok")
    assert result.sources == sources == door.label.sources
    assert ("Traceback" in log.read_text()) == (code in ("defect", "none"))
    assert "Traceback" not in result.content


def test_text_of_others_makes_changes_ask() -> None:
    desk = Desk()
    door = Gateway(desk.tools)
    assert not door.call(call("write", {"text": "mine"})).error
    assert door.call(call("read", {"path": "a"})).sources == {"file:a"}
    refused = door.call(call("write", {"text": "injected"}))
    assert refused.error
    assert refused.content == (
        "error: write was not run: the conversation holds text from file:a, "
        "and no person approved the call"
    )
    assert desk.written == ["mine"]
    assert door.refusals == 1
    assert not door.call(call("add", {"a": 1})).error
    assert not door.call(call("read", {"path": "b"})).error


def test_a_stored_conversation_keeps_its_label() -> None:
    stored = ToolResult(call("read"), "x", sources=frozenset({"file:a"}))
    door = Gateway(Desk().tools)
    door.resume([ToolResult(call("add"), "3"), stored])
    assert door.label == Label(frozenset({"file:a"}))
    assert door.call(call("write", {"text": "x"})).error
    door.saw(["attachment:b.pdf"])
    assert door.label.sources == {"file:a", "attachment:b.pdf"}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["add", "read", "write", "run"]), max_size=12))
def test_no_change_is_silent_once_a_stranger_was_read(names: list[str]) -> None:
    """I1 with the worst-case model: whatever it calls, nothing acts unasked after a read."""
    desk, asked = Desk(), []
    door = Gateway(desk.tools, approve=lambda request: bool(asked.append(request.tool)))
    arguments = {
        "add": {"a": 1},
        "read": {"path": "p"},
        "write": {"text": "t"},
        "run": {"code": "ok"},
    }
    foreign = False
    for name in names:
        before = len(desk.written)
        result = door.call(call(name, arguments[name]))
        if name in ("write", "run"):
            assert result.error == foreign
            assert (asked[-1:] == [name]) or not foreign
        assert not (foreign and len(desk.written) > before)
        foreign = foreign or name in ("read", "run")


def approving(answer: Any, seen: list[Request]) -> Callable[[Request], Any]:
    def approve(request: Request) -> Any:
        seen.append(request)
        return answer

    return approve


@pytest.mark.parametrize("answer", [False, None, 1, "yes"])
def test_only_true_is_a_yes(answer: Any) -> None:
    desk = Desk()
    door = Gateway(desk.tools, approve=approving(answer, []), policy=always_ask)
    assert door.call(call("write", {"text": "x"})).error
    assert (desk.written, door.refusals) == ([], 1)


def test_an_approval_is_for_one_call() -> None:
    desk, seen = Desk(), list[Request]()
    door = Gateway(desk.tools, approve=approving(True, seen), policy=always_ask)
    for _ in range(2):
        assert not door.call(call("write", {"text": "x"})).error
    assert len(seen) == 2  # the replay asked again
    assert seen[0].sha256 != seen[1].sha256
    assert desk.written == ["x", "x"]


def test_what_was_approved_is_what_runs() -> None:
    """The policy and the person see a copy; changing theirs changes nothing."""
    desk = Desk()

    def meddling(tool: Tool, arguments: Any, label: Label) -> Decision:
        arguments["text"] = "other"
        return Decision("ask", "because")

    seen: list[Request] = []
    door = Gateway(desk.tools, approve=approving(True, seen), policy=meddling)
    door.call(call("write", '{"text": "first", "text": "last"}'))
    assert desk.written == ["last"]
    assert seen[0].text == 'write\n  text: "last"'


def test_a_request_shows_the_call_its_sources_and_the_reason() -> None:
    seen: list[Request] = []
    door = Gateway(Desk().tools, approve=approving(False, seen))
    door.saw(["file:b\u202e.txt", "file:a"])
    door.call(call("run", {"code": "print(1)\n\nrm\u202e\x1b[2K -rf\r\n  ⟨U+0041⟩ \U000e0041"}))
    (request,) = seen
    assert request.tool == "run" and request.effect == "execute"
    assert request.sources == ("file:a", "file:b⟨U+202E⟩.txt")
    assert request.reason == "the conversation holds text from file:a, file:b⟨U+202E⟩.txt"
    assert request.text == (
        "run\n  code:\n    │ print(1)\n    │ \n"
        "    │ rm⟨U+202E⟩⟨U+001B⟩[2K -rf⟨U+000D⟩\n"
        "    │   ⟨U+27E8⟩U+0041⟩ ⟨U+E0041⟩"
    )


SPOOFS = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA1)), *"\u200b\u200d\u2060\ufeff"]
SPOOFS += [*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u2028\u2029"]
SPOOFS += [*"\u00ad\u034f\u115f\u3164\u2800\ufe0f\u3000\ue000\ud800\U000e0100\U000e007f\uffff⟨"]


@pytest.mark.parametrize("character", SPOOFS, ids=lambda c: f"U+{ord(c):04X}")
def test_hidden_characters_show(character: str) -> None:
    assert visible(f"a{character}b") == f"a⟨U+{ord(character):04X}⟩b"


@given(st.text())
def test_shown_text_is_never_ambiguous(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert "".join(visible(character) for character in text) == shown
    back = "".join(
        chr(int(piece[2:].split("⟩", 1)[0], 16)) + piece.split("⟩", 1)[1] if number else piece
        for number, piece in enumerate(shown.split("⟨"))
    )
    assert back == text


@pytest.mark.parametrize("text", ["plain text, 100 %", "中文，日本語", "naïve café", "😀 ∑ → “q”"])
def test_ordinary_text_stays(text: str) -> None:
    assert visible(text) == text


def test_two_tools_of_one_name_are_a_defect() -> None:
    desk = Desk()
    with pytest.raises(ValueError, match="two tools have one name"):
        Gateway(desk.tools + desk.tools)


def test_the_log_holds_decision_and_result(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log.jsonl"
    door = Gateway(Desk().tools, log=log, approve=lambda request: True)
    door.call(call("read", {"path": "a\u202e"}))
    door.call(call("write", {"text": "x" * 100_000}, id="2"))
    door.call(call("nothing", "\x1b[2J", id="3"))
    records = [json.loads(line) for line in log.read_text("ascii").splitlines()]
    assert [(r["event"], r["tool"], r["id"]) for r in records] == [
        ("call", "read", "1"),
        ("result", "read", "1"),
        ("call", "write", "2"),
        ("result", "write", "2"),
        ("invalid", "nothing", "3"),
    ]
    assert [r.get("decision") for r in records] == ["allow", None, "ask", None, None]
    assert [r.get("approved") for r in records] == [None, None, True, None, None]
    assert records[2]["sources"] == ["file:a\u202e"]
    assert records[2]["arguments"]["characters"] == len('{"text":""}') + 100_000
    assert len(records[2]["sha256"]) == 64
    assert (records[3]["files"], records[3]["file_count"]) == (["a.txt"], 1)
    assert log.stat().st_size < 40_000 and log.stat().st_mode & 0o077 == 0
    assert audit.verify(log)[0] == 5


def test_the_decision_is_logged_before_the_tool_acts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines: list[int] = []

    @tool(effect="write")
    def probe() -> str:
        """Count the lines of the log."""
        lines.append(len(log.read_text().splitlines()))
        return ""

    Gateway([probe], log=log).call(call("probe"))
    assert lines == [1]


def test_without_its_log_nothing_acts(tmp_path: Path) -> None:
    desk = Desk()
    (tmp_path / "file").write_text("")
    with pytest.raises((TriviumError, OSError)):
        Gateway(desk.tools, log=tmp_path / "file" / "log").call(call("write", {"text": "x"}))
    assert desk.written == []


def chain(path: Path, count: int = 5) -> list[bytes]:
    for number in range(count):
        audit.append(path, {"number": number})
    return path.read_bytes().splitlines(keepends=True)


def test_the_chain_shows_every_change(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = chain(log)
    count, head = audit.verify(log)
    assert count == 5
    damaged = {
        "changed": [lines[0], lines[1].replace(b"1", b"7"), *lines[2:]],
        "removed": lines[:2] + lines[3:],
        "swapped": [lines[0], lines[2], lines[1], *lines[3:]],
        "put in": [*lines[:2], lines[0], *lines[2:]],
        "beheaded": lines[1:],
        "no record": [*lines[:4], b"[]\n"],
    }
    for name, content in damaged.items():
        log.write_bytes(b"".join(content))
        with pytest.raises(TriviumError, match="the chain of the log is broken"):
            pytest.fail(f"{name}: {audit.verify(log)}")
    log.write_bytes(b"".join(lines[:4]))
    assert audit.verify(log)[1] != head  # a lost end shows against the head kept elsewhere


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_cut_by_a_crash_spoils_only_itself(tmp_path: Path, cut: int) -> None:
    log = tmp_path / "log"
    chain(log)
    log.write_bytes(log.read_bytes()[:-cut])
    audit.append(log, {"number": 5})
    audit.append(log, {"number": 6})
    assert audit.verify(log)[0] in (6, 7)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:4], lines[4][:-2] + b"\n", *lines[5:]]))
    with pytest.raises(TriviumError):
        audit.verify(log)


def test_an_empty_log_verifies(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"")
    assert audit.verify(tmp_path / "log") == (0, "0" * 64)


def test_two_processes_share_one_chain(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=chain, args=(log, 20)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert audit.verify(log)[0] == 40
