"""`run --task NAME` and `run --schema FILE`: JSON about one text, or about every text of a file."""

import functools
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from trivium.cli import attachments, local
from trivium.cli.console import print_json
from trivium.cli.settings import Settings
from trivium.errors import NotFound, UsageError

if TYPE_CHECKING:
    from trivium.llmos.tasks.asking import Asker
    from trivium.llmos.tasks.task import Task

NAMES = ("sentiment", "classify", "extract", "summarise", "translate", "answer")
# What one session has and a task has not, by its name on the command line.
FOREIGN = {
    "continue_": "--continue",
    "system": "--system",
    "workspace": "--workspace",
    "tools": "--tools",
    "yes": "--yes",
    "max_steps": "--max-steps",
    "stream": "--stream",
}
_LABELS = {"label": "labels", "calibrate": "calibrated", "probabilities": "probabilities"}
OWN: dict[str, dict[str, str]] = {  # task: the options that it has, and what it calls them
    "sentiment": _LABELS,
    "classify": _LABELS,
    "extract": {"label": "types"},
    "summarise": {"words": "words"},
    "translate": {"to": "to"},
}


@dataclass(frozen=True)
class TaskSettings:
    """The options of a task, under their names on the command line."""

    task: str | None = None
    schema: Path | None = None
    instruction: str | None = None
    label: tuple[str, ...] = ()
    to: str | None = None
    words: int | None = None
    examples: Path | None = None
    calibrate: bool | None = None
    probabilities: bool = False
    input: Path | None = None
    field: str | None = None
    output: Path | None = None
    overwrite: bool = False

    @property
    def wanted(self) -> bool:
        """Whether the request is a task. Raises UsageError for an option of one without it."""
        if self.task is not None and self.schema is not None:
            raise UsageError("--task and --schema cannot both hold: give one")
        if self.task is not None or self.schema is not None:
            return True
        for one in fields(self):
            if getattr(self, one.name) != one.default:
                raise UsageError(f"--{one.name} needs --task NAME or --schema FILE")
        return False


def task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `TaskSettings`; the command gets the value that they make as `work`."""
    file = click.Path(path_type=Path)
    decorators = (
        click.option("--task", type=click.Choice(NAMES), help="Answer with JSON of this task."),
        click.option(
            "--schema", type=file, metavar="FILE", help="Answer with JSON of this schema."
        ),
        click.option("--instruction", metavar="TEXT", help="What the task is to do, in words."),
        click.option(
            "--label", multiple=True, metavar="TEXT", help="A label, or a type to extract (repeat)."
        ),
        click.option("--to", metavar="LANGUAGE", help="The language of a translation."),
        click.option("--words", type=click.IntRange(1, 2000), help="The most of a summary: 60."),
        click.option(
            "--examples", type=file, metavar="FILE", help='JSONL of {"input": …, "output": …}.'
        ),
        click.option(
            "--calibrate/--no-calibrate",
            default=None,
            help="Labels against empty inputs (default).",
        ),
        click.option("--probabilities", is_flag=True, help="Add the probability of every label."),
        click.option(
            "--input", type=file, metavar="FILE", help="A task for each of its lines, or - (stdin)."
        ),
        click.option("--field", metavar="NAME", help="Where in JSONL or CSV the text stands."),
        click.option(
            "--output", type=file, metavar="FILE", help="JSONL; continued if it is there."
        ),
        click.option("--overwrite", is_flag=True, help="Begin the output anew."),
    )

    @functools.wraps(command)
    def collecting(**values: Any) -> Any:
        own = {one.name: values.pop(one.name) for one in fields(TaskSettings)}
        return command(work=TaskSettings(**own), **values)

    for decorate in reversed(decorators):
        collecting = decorate(collecting)
    return collecting


def run_task(
    context: click.Context,
    request: tuple[str, ...],
    attach: Sequence[Path],
    as_json: bool,
    settings: Settings,
    work: TaskSettings,
) -> None:
    """Do one text, or a whole file. Exit code 1 when a text of the file could not be answered."""
    for name, option in FOREIGN.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{option} is for a conversation, which --task and --schema are not")
    if work.input is not None:
        from trivium.cli.task_file import run_file

        task = _task(work, settings, *_fixed(work, " ".join(request), attach))
        run_file(context, task, work, settings.model, lambda: open_asker(settings))
        return
    for name in ("output", "field", "overwrite"):
        if getattr(work, name):
            raise UsageError(f"--{name} needs --input FILE")
    text, question = _one_text(work, " ".join(request), attach)
    task = _task(work, settings, question, "")
    start = time.monotonic()
    with open_asker(settings) as asker:
        outcome = task.run(asker, text)
        name = asker.name
    seconds = round(time.monotonic() - start, 3)
    if as_json:
        print_json(
            {
                "model": name,
                "task": task.name,
                "output": outcome.value,
                "cut": outcome.cut,
                "seconds": seconds,
            }
        )
    else:
        click.echo(json.dumps(outcome.value, ensure_ascii=False))
    if outcome.cut:
        click.echo("the answer is cut: it reached the limit of tokens (--max-tokens)", err=True)


# -- what is asked ------------------------------------------------------------------------------


def _one_text(work: TaskSettings, request: str, attach: Sequence[Path]) -> tuple[str, str]:
    """The text of a task, and the question about it."""
    piped = attachments.read_stdin()
    texts = [_text_of(path) for path in attach] + ([piped] if piped.strip() else [])
    if work.task == "answer":
        if not request.strip() or not texts:
            raise UsageError(
                "--task answer needs a question and a document: "
                'trivium run --task answer -a FILE "QUESTION", or the document on stdin'
            )
        return attachments.check_prompt("\n\n".join(texts)), attachments.check_prompt(request)
    if request.strip() and texts:
        raise UsageError(
            f"a task has one text: give it as an argument, or by --attach, or on stdin "
            f"(what to do with it: --instruction {shlex.quote(request)})"
        )
    return attachments.check_prompt(request if request.strip() else "\n\n".join(texts)), ""


def _fixed(work: TaskSettings, request: str, attach: Sequence[Path]) -> tuple[str, str]:
    """The question, or the document, that all texts of a file share."""
    document = "\n\n".join(_text_of(path) for path in attach)
    if work.task != "answer":
        if request.strip() or attach:
            raise UsageError(f"the texts come from {work.input}: leave out the other one")
    elif bool(request.strip()) is bool(document.strip()):
        raise UsageError(
            "--task answer --input FILE needs a question about each text of the file, or "
            "--attach DOCUMENT, which each of them is a question about"
        )
    return request, document


def _text_of(path: Path) -> str:
    file = attachments.read_file(path)
    if file.media_type:
        raise UsageError(f"{path} is a picture; a task reads text")
    return file.data.decode("utf-8-sig")


def _task(work: TaskSettings, settings: Settings, question: str, document: str) -> "Task":
    from trivium.llmos.tasks import TASKS, Answer, Fill, read_examples

    given: dict[str, Any] = {"instruction": work.instruction or ""}
    if settings.max_tokens is not None:
        given["max_tokens"] = settings.max_tokens
    if work.examples is not None:
        given["examples"] = read_examples(work.examples)
    own = OWN.get(work.task or "", {})
    for option in {name for names in OWN.values() for name in names}:
        if (value := getattr(work, option)) == getattr(TaskSettings, option):
            continue
        if option not in own:
            what = f"--task {work.task}" if work.task else "--schema"
            raise UsageError(f"--{option} is not for {what}")
        given[own[option]] = value
    if work.task == "translate" and work.to is None:
        raise UsageError("--task translate needs --to LANGUAGE")
    if work.task == "classify" and not work.label:
        raise UsageError("--task classify needs its labels: --label ONE --label OTHER")
    if work.task is None:
        assert work.schema is not None
        return Fill(_schema(work.schema), **given)
    if work.task == "answer":
        return Answer(question=question, document=document, **given)
    return TASKS[work.task](**given)


def _schema(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"no such file: {path}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(f"{path} is not a JSON schema: {error}") from None


def open_asker(settings: Settings) -> "Asker":
    with local.needed(", or use a server: -m remote:NAME"):
        from trivium.llmos import tasks

        asker = tasks.open_asker(
            settings.model,
            device=settings.device or "auto",
            threads=settings.threads,
            temperature=settings.temperature,
            seed=settings.seed,
        )
    if settings.offline and not getattr(asker, "on_this_machine", True):
        raise UsageError(f"{settings.model} is reached over the network, which --offline forbids")
    return asker
