"""The tools `python` and `terminal`: code of the model, run in the sandbox on the workspace.

What a call writes is recorded by the workspace, so that it can be undone. Code may read every file
of the workspace, so its output counts as written by whoever wrote those (source `files:.`), unless
there is no file but what code of these tools has made.
"""

import os
import re
import shutil
import stat
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from trivium.llmos.confirmation import visible
from trivium.llmos.sandbox.jail import signal_name
from trivium.llmos.sandbox.limits import Limits
from trivium.llmos.sandbox.session import Execution, PythonSession
from trivium.llmos.sandbox.supervisor import DEFAULT_LIMITS, Completed, Sandbox
from trivium.llmos.tools import Tool, ToolError, ToolOutput, tool
from trivium.llmos.undo import Change
from trivium.llmos.workspace import Workspace

SHOWN_CHARACTERS = 12_000
SHOWN_FILES = 20
LABEL_CHARACTERS = 60
CODE_BYTES = 100_000  # the kernel takes no argument longer than 128 KiB
WALKED = 1_000  # entries beyond those that code made

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?", re.DOTALL)
_OVERWRITTEN = re.compile(r"[^\n]*\r(?=[^\r\n])")
_NOT_WRITABLE = re.compile("Permission denied|Read-only file system")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def code_tools(workspace: Workspace, limits: Limits = DEFAULT_LIMITS) -> tuple[Tool, ...]:
    """`python` and `terminal` on `workspace`.

    The first call sets the sandbox up; it raises Refused where there can be none. The Python
    session lives as long as the tools.
    """
    code_runner = _Runner(workspace, limits)

    @tool(effect="execute")
    def python(code: str) -> ToolOutput:
        """Run Python code in the workspace, without network, and return what it prints.

        Also returned are the value of the last expression, and plots as files. Variables and
        imports are kept from call to call.

        code: for example sum(range(10))
        """
        return code_runner.python(code)

    @tool(effect="execute")
    def terminal(command: str) -> ToolOutput:
        """Run a shell command in the workspace, without network, and return what it prints.

        command: for example wc -l *.csv
        """
        return code_runner.terminal(command)

    return (python, terminal)


class _Runner:
    """What the two tools share: a sandbox, a Python session, and who wrote the files."""

    def __init__(self, workspace: Workspace, limits: Limits) -> None:
        self.workspace = workspace
        self.limits = limits
        self._made: set[str] = set()
        self._sources: frozenset[str] = frozenset()

    @cached_property
    def _visible(self) -> Path:
        """What code may read: of a home folder, or more, only the part that tools may write."""
        home = Path.home().resolve()
        whole = not home.is_relative_to(self.workspace.root)
        return self.workspace.root if whole else self.workspace.writable

    @cached_property
    def _sandbox(self) -> Sandbox:
        return Sandbox([self.workspace.writable], [self._visible], self.limits)

    @cached_property
    def _session(self) -> PythonSession:
        return PythonSession(self._sandbox, self._visible)

    def python(self, code: str) -> ToolOutput:
        _check(code)
        session = self._session
        self._look_for_files()
        with self.workspace.recording(_label("python", code)) as change:
            execution = session.run(code)
        return self._output(_python_text(execution), change)

    def terminal(self, command: str) -> ToolOutput:
        _check(command)
        sandbox = self._sandbox
        self._look_for_files()
        argv = ["bash" if shutil.which("bash") else "sh", "-c", command]
        with self.workspace.recording(_label("terminal", command)) as change:
            completed = sandbox.run(argv, cwd=self._visible, merge=True)
        return self._output(_terminal_text(completed, self.limits), change)

    def _look_for_files(self) -> None:
        """Note whether code could read a file that it has not made itself."""
        limit = len(self._made) + WALKED
        for seen, (path, status) in enumerate(self.workspace.walk(self._visible, limit), start=1):
            # Hidden folders are not walked: who knows what is in them.
            folder = stat.S_ISDIR(status.st_mode) and not os.path.basename(path).startswith(".")
            if seen == limit or not (folder or path in self._made):
                self._sources = frozenset({"files:."})
                return

    def _output(self, text: str, change: Change) -> ToolOutput:
        self._made.update(change.files)
        lines = [text] if text else []
        for verb, names in (("wrote", change.files), ("deleted", change.deleted)):
            if names:
                lines.append(f"[{verb} {_listed(names)}]")
        if self.workspace.note and _NOT_WRITABLE.search(text):
            lines.append(f"[{self.workspace.note}]")
        return ToolOutput("\n".join(lines) or "[no output]", change.files, self._sources)


def _check(code: str) -> None:
    if "\0" in code:
        raise ToolError("the code holds a NUL character: leave it out")
    try:
        size = len(code.encode())
    except UnicodeEncodeError:
        raise ToolError("the code is not valid text: it holds half of a character") from None
    if size > CODE_BYTES:
        raise ToolError(f"the code is longer than {CODE_BYTES} bytes: do it in several calls")


def _label(name: str, code: str) -> str:
    lines = code.strip().splitlines() or [""]
    more = " …" if len(lines) > 1 or len(lines[0]) > LABEL_CHARACTERS else ""
    return f"{name}: {visible(lines[0][:LABEL_CHARACTERS])}{more}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(visible(name) for name in names[:SHOWN_FILES])
    left = len(names) - SHOWN_FILES
    return f"{shown} and {left} more" if left > 0 else shown


def _python_text(execution: Execution) -> str:
    parts = [_readable(execution.text), _readable(execution.value), _readable(execution.error)]
    if execution.lost:
        parts.append(f"[stopped: {execution.lost}; all variables and imports are lost]")
    return "\n".join(part for part in parts if part)


def _terminal_text(completed: Completed, limits: Limits) -> str:
    code = completed.returncode
    if completed.reason != "exit":
        ending = f"[stopped: {limits.describe(completed.reason)}]"
    elif code < 0:
        ending = f"[ended by {signal_name(-code)}]"
    else:
        ending = f"[exit code {code}]"
    printed = _readable(completed.stdout.decode(errors="replace"))
    return f"{printed}\n{ending}" if printed else ending


def _readable(text: str) -> str:
    """Without colours, cursor movements and what a progress bar overwrote; the middle left out
    when it is long."""
    text = _OVERWRITTEN.sub("", _ESCAPES.sub("", text))
    text = _CONTROLS.sub("", text).rstrip()
    left_out = len(text) - SHOWN_CHARACTERS
    if left_out <= 0:
        return text
    half = SHOWN_CHARACTERS // 2
    return f"{text[:half]}\n[... {left_out} characters left out ...]\n{text[-half:]}"
