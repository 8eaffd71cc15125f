"""The options that `run` and `chat` have in common."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from trivium.cli import options
from trivium.llmos.kernel import Budget


@dataclass(frozen=True)
class Settings:
    """The options of a session, under their names on the command line."""

    model: str
    workspace: Path
    model_given: bool = True
    system: str | None = None
    tools: bool = True
    yes: bool = False
    max_steps: int = Budget.steps
    max_tokens: int | None = None
    max_seconds: float = Budget.seconds
    temperature: float | None = None
    seed: int | None = None
    device: str | None = None
    threads: int | None = None
    offline: bool = False
    continue_: bool = False

    @property
    def budget(self) -> Budget:
        tokens = Budget().tokens if self.max_tokens is None else self.max_tokens
        return Budget(self.max_steps, tokens, self.max_seconds)


def session_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `Settings`; the command gets the value that they make as `settings`."""
    default = Budget()
    decorators = (
        options.model,
        options.system,
        options.continue_,
        click.option(
            "-w",
            "--workspace",
            type=click.Path(path_type=Path, exists=True, file_okay=False),
            default=".",
            metavar="DIR",
            help="The folder whose files the tools may use (default: this one).",
        ),
        click.option("--tools/--no-tools", default=True, help="Let the model use tools (default)."),
        click.option("-y", "--yes", is_flag=True, help="Allow every action without asking."),
        click.option(
            "--max-steps",
            type=click.IntRange(1),
            default=default.steps,
            show_default=True,
            help="Model calls a request may take.",
        ),
        click.option(
            "--max-tokens",
            type=click.IntRange(1),
            help=f"Tokens a request may generate (default: {default.tokens}).",
        ),
        click.option(
            "--max-seconds",
            type=click.FloatRange(0, min_open=True),
            default=default.seconds,
            show_default=True,
            help="Time a request may take.",
        ),
        click.option(
            "--temperature",
            type=click.FloatRange(0),
            help="0 always takes the likeliest word; more varies (default: the model's own).",
        ),
        options.seed,
        options.device,
        options.threads,
        options.offline,
    )

    @functools.wraps(command)
    @click.pass_context
    def collecting(context: click.Context, /, **values: Any) -> Any:
        given = context.get_parameter_source("model") is ParameterSource.COMMANDLINE
        own = {f.name: values.pop(f.name) for f in fields(Settings) if f.name in values}
        return command(settings=Settings(model_given=given, **own), **values)

    for decorate in reversed(decorators):
        collecting = decorate(collecting)
    return collecting
