"""The command line: `trivium COMMAND`.

One click group whose commands are imported only when they are used, so that `trivium --help` reads
nothing but the table below. Results go to stdout, everything said to a person to stderr.

Exit codes: 0 done, 1 failure, 2 usage, 3 refused, 4 not found (`trivium.errors`), 130 Ctrl-C.
`TRIVIUM_DEBUG=1` adds the traceback to any failure.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from trivium import __version__
from trivium.errors import TriviumError

COMMANDS = {  # name: (module:attribute, the first line of its help, as a test checks)
    "chat": ("trivium.cli.chat:chat", "Talk with a model that has tools, turn by turn."),
    "run": ("trivium.cli.run:run", "Do one request with tools, print the answer and leave."),
    "complete": ("trivium.cli.complete:complete", "Continue a text, without template and tools."),
    "embed": ("trivium.cli.embed:embed", "Turn texts into vectors, or search among them."),
    "perplexity": (
        "trivium.cli.perplexity:perplexity",
        "Measure how well models predict a text.",
    ),
    "data": ("trivium.cli.data:data", "Show and check what models are trained on."),
    "train": ("trivium.cli.train:train", "Train a model by a recipe."),
    "words": (
        "trivium.cli.words:words",
        "Find the words nearest to a word, or to a sum of words.",
    ),
    "rank": ("trivium.cli.rank:rank", "Compare two answers at a time, and keep what you choose."),
    "optimise-prompt": (
        "trivium.cli.optimise_prompt:optimise_prompt",
        "Find a better prompt for a task.",
    ),
    "serve": ("trivium.cli.serve:serve", "Serve models over HTTP, as OpenAI's API."),
    "models": (
        "trivium.cli.models:models",
        "List the models that are here and that can be pulled.",
    ),
    "pull": ("trivium.cli.models:pull", "Fetch models and check them."),
    "export": ("trivium.cli.export:export", "Write a model for other programs."),
    "show": ("trivium.cli.show:show", "Tell what a model is."),
    "rm": ("trivium.cli.models:remove", "Delete a pulled model."),
    "doctor": (
        "trivium.cli.doctor:doctor",
        "Tell what works here, what is missing and how to get it.",
    ),
    "completion": ("trivium.cli.completion:completion", "Print the completion script of a shell."),
}
ALIASES = {"ls": "models", "list": "models"}


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name][0].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not ctx.resilient_parsing and name not in {*COMMANDS, *ALIASES}:
            import difflib

            close = difflib.get_close_matches(name, [*COMMANDS, *ALIASES], n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            ctx.fail(f"no command {name!r}{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        found = [
            CompletionItem(name, help=summary)
            for name, (_, summary) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and leave the process, with one line on stderr for any failure."""
        _reopen_closed()
        _wait_politely()
        for stream in (sys.stdout, sys.stderr):
            # A terminal that cannot show a character gets its escape, not a crash.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        call = super().main
        prog_name = prog_name or "trivium"
        if not standalone_mode:
            return call(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            code = call(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
            sys.exit(code if isinstance(code, int) else 0)
        except Exception as error:
            sys.exit(_report(error))


def _wait_politely() -> None:
    """Let PyTorch's threads sleep soon when they wait for each other. Else they spin, and where
    another process wants a core, a step of training takes 7 times as long as it does then. Read
    by OpenMP when PyTorch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def _reopen_closed() -> None:
    """Put something in the place of a stream that the caller closed (`>&-`).

    Else the next file that is opened gets its number, and what is printed ends up in that file.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            # A result that nobody gets is a failure: for stdout, writing fails like a full disk.
            flags = os.O_WRONLY if name == "stderr" else os.O_RDONLY
            handle = os.open(os.devnull, flags)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: SIM115


def _report(error: Exception) -> int:
    """Say in one line on stderr what went wrong; return the exit code."""
    if isinstance(error, OSError):  # perhaps stdout itself: nothing more may be flushed into it
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 1
    if isinstance(error, click.Abort):
        if error.__cause__ is None:  # at a question: the cursor stands behind ^C
            click.echo(err=True)
        return 130
    if "_TRIVIUM_COMPLETE" in os.environ:  # a shell completes a line: nobody asked for this yet
        return 1
    debug = bool(os.environ.get("TRIVIUM_DEBUG"))
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        message, code = error.format_message(), error.exit_code
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" (see `{context.command_path} --help`)" if context else ""
        message = message.rstrip(".") + hint
    elif isinstance(error, TriviumError):
        message, code = str(error), error.exit_code
    else:  # of the system, which names its file, or a defect of ours
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        message, code = f"{kind}{error}", 1
        if not debug:
            message = f"{message} (TRIVIUM_DEBUG=1 shows where)"
    from trivium.cli.render import printable

    with contextlib.suppress(OSError):  # the exit code says it where stderr cannot
        click.echo(printable("trivium: " + " ".join(message.split())), err=True)
    return code


@click.group(
    "trivium",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`trivium COMMAND --help` tells more. TRIVIUM_HOME, TRIVIUM_MODEL, TRIVIUM_OFFLINE and "
    "OPENAI_BASE_URL are read from the environment.",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def main() -> None:
    """Language models, and the LLM OS that puts them to work, on this machine."""
