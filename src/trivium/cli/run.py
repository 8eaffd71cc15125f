"""`run`: one request, with tools, from the shell or a script."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from trivium.cli import attachments, options
from trivium.cli.console import print_json
from trivium.cli.render import Screen
from trivium.cli.session import Session
from trivium.cli.settings import Settings, session_options
from trivium.cli.task import TaskSettings, run_task, task_options
from trivium.errors import Refused, TriviumError, UsageError
from trivium.llmos.messages import Answer, Failure, ToolCall, ToolResult


@click.command()
@click.argument("request", nargs=-1)
@options.attach
@session_options
@click.option(
    "--stream/--no-stream", default=True, help="Print the answer as it is made (default)."
)
@options.as_json
@task_options
@click.pass_context
def run(
    context: click.Context,
    request: tuple[str, ...],
    attach: tuple[Path, ...],
    stream: bool,
    as_json: bool,
    settings: Settings,
    work: TaskSettings,
) -> None:
    """Do one request with tools, print the answer and leave.

    \b
    trivium run "What is 347 * 28?"
    cat notes.txt | trivium run "Summarise this in three lines"
    trivium run -c "and now in French"
    trivium run --task sentiment "I loved it."
    trivium run --schema person.json --input people.txt --output people.jsonl

    Text on stdin is part of the request. The answer goes to stdout, tool calls and their results
    to stderr. Exit codes: 1 no answer (a budget is spent), 3 an action was refused because nobody
    could be asked, 130 stopped.

    With --task or --schema the answer is JSON, without tools; --input does every text of a file.
    """
    if work.wanted:
        run_task(context, request, attach, as_json, settings, work)
        return
    prompt, attached = _read(request, attach)
    start = time.monotonic()
    screen = Screen("none" if as_json else "stream" if stream else "whole")
    with Session(settings, screen) as session:
        if any(file.media_type for file in attached) and not getattr(
            session.model, "images", False
        ):
            raise UsageError(f"{session.model.name} takes no pictures: attach text, or use another")
        end = session.answer(
            attachments.compose(prompt, attached),
            sources=frozenset(file.source for file in attached),
            title=prompt,
        )
        if as_json:
            print_json(_report(session, end, time.monotonic() - start))
        unasked = session.approver.unasked
    if isinstance(end, Failure):
        if end.kind == "cancelled":
            context.exit(130)
        raise TriviumError(end.message)
    if unasked:
        what = "1 action was" if unasked == 1 else f"{unasked} actions were"
        raise Refused(f"{what} refused: nobody could be asked; --yes allows them")


def _read(
    request: tuple[str, ...], attach: tuple[Path, ...]
) -> tuple[str, list[attachments.Attachment]]:
    """The request, and what it is about. Text on stdin is the request if there is no other."""
    prompt, piped = " ".join(request), attachments.read_stdin()
    files = [attachments.read_file(path) for path in attach]
    if prompt.strip() and piped.strip():
        files.append(attachments.Attachment("stdin", piped.encode()))
    return attachments.check_prompt(prompt if prompt.strip() else piped), files


def _report(session: Session, end: Answer | Failure, seconds: float) -> dict[str, Any]:
    events = session.conversation.turns[-1].events
    results = {id(event.call): event for event in events if isinstance(event, ToolResult)}
    calls = []
    for call in (event for event in events if isinstance(event, ToolCall)):
        result = results.get(id(call))
        calls.append(
            {
                **call.to_json(),
                "result": result.content if result else None,
                "error": result.error if result else None,
                "files": list(result.files) if result else [],
                "seconds": round(result.seconds, 3) if result else None,
            }
        )
    answer = end if isinstance(end, Answer) else None
    return {
        "conversation": session.conversation.id,
        "model": session.model.name,
        "answer": answer.text if answer else None,
        "finish_reason": answer.reason if answer else None,
        "failure": asdict(end) if isinstance(end, Failure) else None,
        "tool_calls": calls,
        "usage": asdict(session.usage),
        "seconds": round(seconds, 3),
    }
