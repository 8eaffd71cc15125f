"""Options that several commands share, as click decorators: one spelling, one help, one meaning."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from trivium.errors import NotFound, UsageError

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]


def _default_model() -> str:
    from trivium.cli.config import default_model

    return default_model()


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from trivium import hub

    names = [*hub.CATALOGUE, *(model.name for model in hub.installed())]
    return sorted({name for name in names if name.startswith(incomplete)})


def _existing_files(
    ctx: click.Context, param: click.Parameter, value: tuple[Path, ...]
) -> tuple[Path, ...]:
    for path in value:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; attach the files in it")
        if not path.exists():
            raise NotFound(f"no such file: {path}")
    return value


def _device(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise click.BadParameter(f"{value!r} is not one of auto, cpu, cuda, cuda:N, mps.")
    return value


model: Decorator[Any] = click.option(
    "-m",
    "--model",
    metavar="NAME",
    envvar="TRIVIUM_MODEL",
    default=_default_model,
    shell_complete=complete_model,
    help="A name of `trivium models`, a folder or GGUF file, a Hugging Face repository, or "
    "remote:NAME (behind OPENAI_BASE_URL).",
)
system: Decorator[Any] = click.option(
    "-s", "--system", metavar="TEXT", help="Instructions that the model reads first."
)
attach: Decorator[Any] = click.option(
    "-a",
    "--attach",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    callback=_existing_files,
    help="A file the request is about (may be given again).",
)
continue_: Decorator[Any] = click.option(
    "-c", "--continue", "continue_", is_flag=True, help="Go on with the latest conversation."
)
seed: Decorator[Any] = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), help="Makes sampling repeatable."
)
device: Decorator[Any] = click.option(
    "--device", metavar="DEVICE", callback=_device, help="auto, cpu, cuda, cuda:N or mps."
)
threads: Decorator[Any] = click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="CPU threads (default: all cores)."
)
offline: Decorator[Any] = click.option(
    "--offline", is_flag=True, envvar="TRIVIUM_OFFLINE", help="Use no network."
)
as_json: Decorator[Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead of text."
)
