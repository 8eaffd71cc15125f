"""The one door between a model and the world: the only code that calls tools.

The model is assumed to be fooled. What holds anyway is held here, for every call:

1. the arguments fit the tool's schema, or the model is told what to change;
2. a policy decides by the tool's effect and by the label of the conversation (who wrote the text
   that the model has read): allow, ask, or deny;
3. where it says ask, a person sees the effective call and answers for it alone; no answer is no;
4. the decision is in the log before the tool acts, its result after;
5. what the tool returned is joined into the conversation's label.

What is not covered: a label follows whole texts, not words, so once somebody else's text is in the
conversation every later change asks; and a person who says yes to everything is not protected.
"""

import difflib
import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trivium.errors import TriviumError
from trivium.llmos import audit
from trivium.llmos.confirmation import Request, canonical, visible
from trivium.llmos.labels import Label
from trivium.llmos.messages import ToolCall, ToolResult
from trivium.llmos.tools import Tool, ToolError, ToolOutput

_LOGGED_FILES = 100


@dataclass(frozen=True)
class Decision:
    verdict: Literal["allow", "ask", "deny"]
    reason: str


Policy = Callable[[Tool, Mapping[str, Any], Label], Decision]
Approve = Callable[[Request], bool]


def decide(tool: Tool, arguments: Mapping[str, Any], label: Label) -> Decision:
    """The default policy: reading is free, and only the user's own words change things unasked.

    Changes are confined to the workspace and can be undone, so on the user's own words they need no
    question. Text of others may have put the call into the model's mouth, so then a person decides.
    """
    if tool.effect == "none" or tool.effect == "read":
        return Decision("allow", "it changes nothing")
    if tool.effect == "write" or tool.effect == "execute":
        if not label.sources:
            return Decision("allow", "only the user's own words are in the conversation")
        return Decision("ask", f"the conversation holds text from {_listed(label.sources)}")
    return Decision("deny", f"its effect {tool.effect!r} is not known to the policy")


def always_ask(tool: Tool, arguments: Mapping[str, Any], label: Label) -> Decision:
    """Ask before everything but pure computation."""
    if tool.effect == "none":
        return Decision("allow", "it changes nothing")
    return Decision("ask", "every action is asked for")


def never_ask(tool: Tool, arguments: Mapping[str, Any], label: Label) -> Decision:
    """Allow everything (`--yes`): the sandbox and the undo store are then the only protection."""
    return Decision("allow", "the user allowed all actions beforehand")


def deny(request: Request) -> bool:
    """The answer where nobody can be asked."""
    return False


def _listed(sources: Iterable[str]) -> str:
    names = sorted(visible(source) for source in sources)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Gateway:
    """Holds the tools of one conversation, its label, and its log.

    `label` is the join of all that entered the conversation; `refusals` counts the calls that
    policy or a person turned down.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        *,
        approve: Approve = deny,
        policy: Policy = decide,
        log: Path | None = None,
    ) -> None:
        self.tools = tuple(tools)
        self.label = Label()
        self.refusals = 0
        self._by_name = {tool.name: tool for tool in self.tools}
        if len(self._by_name) < len(self.tools):
            raise ValueError(f"two tools have one name: {[tool.name for tool in self.tools]}")
        self._approve = approve
        self._policy = policy
        self._log = log
        self._requests = 0

    def saw(self, sources: Iterable[str]) -> None:
        """Note that text of `sources` entered the conversation by another way, as an attachment."""
        self.label |= Label(frozenset(sources))

    def resume(self, results: Iterable[ToolResult]) -> None:
        """Rebuild the label from the results that a stored conversation holds."""
        for result in results:
            self.saw(result.sources)

    def call(self, call: ToolCall) -> ToolResult:
        """Run one call of the model. Its mistakes, refusals and failing tools come back as errors.

        Raises TriviumError only where the log cannot be written: nothing acts without a trace.
        """
        try:
            tool, arguments = self._understood(call)
        except ToolError as error:
            self._record("invalid", call, arguments=call.arguments, error=str(error))
            return ToolResult(call, f"error: {error}", error=True, sources=error.sources)
        refusal = self._refusal(tool, arguments, call)
        if refusal is not None:
            self.refusals += 1
            return ToolResult(call, f"error: {refusal}", error=True)
        start = time.monotonic()
        output, failure, trace = self._run(tool, arguments)
        seconds = time.monotonic() - start
        self.saw(output.sources)
        self._record(
            "result",
            call,
            error=failure,
            content=output.text,
            files=list(output.files[:_LOGGED_FILES]),
            file_count=len(output.files),
            sources=sorted(output.sources),
            seconds=round(seconds, 3),
            **({"traceback": trace} if trace else {}),
        )
        return ToolResult(call, output.text, failure, output.files, output.sources, seconds)

    def _understood(self, call: ToolCall) -> tuple[Tool, str]:
        """The tool and the canonical JSON of its arguments. ToolError for a model's mistake."""
        tool = self._by_name.get(call.name)
        if tool is None:
            near = difflib.get_close_matches(call.name, self._by_name, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            names = ", ".join(self._by_name) or "none"
            raise ToolError(f"there is no tool {call.name[:80]!r}; {hint}the tools are: {names}")
        try:
            arguments = json.loads(call.arguments or "{}", parse_constant=_no_constant)
            text = canonical(arguments)
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
            raise ToolError(f"the arguments of {tool.name} are not valid JSON: {reason}") from error
        if not isinstance(arguments, dict):
            raise ToolError(f"the arguments of {tool.name} must be a JSON object, not {text[:80]}")
        tool.check(arguments)
        return tool, text

    def _refusal(self, tool: Tool, arguments: str, call: ToolCall) -> str | None:
        """Decide, ask where it must be asked, and log; the reason of a no, or None."""
        decision = self._policy(tool, json.loads(arguments), self.label)
        approved = None
        self._requests += 1
        request = Request.of(tool, arguments, self.label.sources, decision.reason, self._requests)
        if decision.verdict == "ask":
            approved = self._approve(request) is True
        self._record(
            "call",
            call,
            arguments=arguments,
            sha256=request.sha256,
            effect=tool.effect,
            sources=sorted(self.label.sources),
            decision=decision.verdict,
            reason=decision.reason,
            approved=approved,
        )
        if decision.verdict == "allow" or approved:
            return None
        if decision.verdict == "ask":
            return f"{tool.name} was not run: {decision.reason}, and no person approved the call"
        return f"{tool.name} was not run: {decision.reason}"

    def _run(self, tool: Tool, arguments: str) -> tuple[ToolOutput, bool, str]:
        """Call the function: its output, whether that is an error, and the traceback of a defect.

        The function gets the very text that was decided on and approved, parsed anew.
        """
        # Text of a tool that reads or runs is somebody else's unless the tool says whose it is.
        unknown = frozenset[str]() if tool.effect == "none" else frozenset({f"tool:{tool.name}"})
        try:
            output = tool.function(**json.loads(arguments))
            if isinstance(output, str):
                output = ToolOutput(output, sources=unknown)
            elif not isinstance(output, ToolOutput):
                raise TypeError(f"{tool.name} returned {type(output).__name__}, not text")
        except ToolError as error:
            return ToolOutput(f"error: {error}", sources=error.sources), True, ""
        except TriviumError as error:
            return ToolOutput(f"error: {error}"), True, ""
        except Exception as error:
            text = (
                f"error: {tool.name} failed by a defect of its own, not of the call "
                f"({type(error).__name__}: {str(error)[:300]}); try another way"
            )
            return ToolOutput(text, sources=unknown), True, traceback.format_exc()
        return output, False, ""

    def _record(self, event: str, call: ToolCall, **fields: Any) -> None:
        if self._log is not None:
            kept = {
                key: audit.shortened(value) if isinstance(value, str) else value
                for key, value in fields.items()
            }
            named = {"time": time.time(), "event": event, "id": call.id, "tool": call.name}
            audit.append(self._log, {**named, **kept})


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
