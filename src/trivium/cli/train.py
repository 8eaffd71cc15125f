"""`train`: runs a recipe, which makes a model and leaves it in a folder with what it measured."""

import contextlib
import os
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

from trivium.cli import local
from trivium.cli.console import print_json, print_table
from trivium.cli.render import printable
from trivium.errors import TriviumError, UsageError
from trivium.recipes import RECIPES
from trivium.recipes.config import Field, fields_in, fill
from trivium.recipes.loading import Recipe, find, source_of

NAME = "trivium.train.words"  # in the context: what was typed, for the help of a recipe


class RecipeCommand(click.Command):
    """Its help also tells the settings of the recipe that is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        before = ["", *args]
        ctx.meta[NAME] = [
            word
            for word, last in zip(args, before, strict=False)
            if not word.startswith("-") and last != "--out"
        ]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            key = error.option_name.lstrip("-").replace("-", "_")
            if key in {field.name for field in _fields(ctx.meta[NAME])}:
                message = f"no option {error.option_name}: a setting is written {key}=VALUE"
                raise click.UsageError(message, ctx) from None
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        words = ctx.meta.get(NAME, [])
        if not words:
            formatter.write_paragraph()
            formatter.write_text("`trivium train NAME --help` tells the settings of a recipe.")
            return
        recipe = find(words[0])
        with formatter.section(f"Settings of {recipe.name} (key=value)"):
            formatter.write_dl(
                [(f"{f.name}={_bare(f.default)}", _help(f)) for f in fields_in(recipe.source)]
            )


def _bare(default: str) -> str:
    """A default of the source as it would be typed."""
    bare = default.strip("()").replace(", ", ",") if default.startswith("(") else default
    return {"True": "yes", "False": "no"}.get(bare, bare.strip("'\""))


def _help(field: Field) -> str:
    kind = {"bool": "yes | no", "str": "text", "float": "number", "int": "number"}
    return f"{field.comment}  [{kind.get(field.kind, field.kind)}]".strip()


def _fields(words: list[str]) -> list[Field]:
    """The settings of the recipe among the words; none, if there is none."""
    try:
        return fields_in(find(words[0]).source) if words else []
    except (TriviumError, OSError, SyntaxError):
        return []


def _complete_name(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    names = [
        CompletionItem(name, help=line)
        for name, line in RECIPES.items()
        if name.startswith(incomplete)
    ]
    return names or [CompletionItem(incomplete, type="file")]


def _complete_setting(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    fields = _fields([ctx.params["name"]] if ctx.params.get("name") else [])
    key, equals, value = incomplete.partition("=")
    if not equals:
        return [
            CompletionItem(f"{field.name}=", help=field.comment)
            for field in fields
            if field.name.startswith(incomplete)
        ]
    kinds = {f.name: "yes | no" if f.kind == "bool" else f.kind for f in fields}
    choices = kinds.get(key, "").split(" | ") if " | " in kinds.get(key, "") else []
    return [CompletionItem(f"{key}={choice}") for choice in choices if choice.startswith(value)]


@click.command(cls=RecipeCommand)
@click.argument("name", metavar="NAME", required=False, shell_complete=_complete_name)
@click.argument("settings", metavar="[KEY=VALUE]...", nargs=-1, shell_complete=_complete_setting)
@click.option("--out", metavar="DIR", help="The run's folder (default: runs/NAME).")
@click.option("--dry-run", is_flag=True, help="Estimate memory and time; nothing is trained.")
@click.option("--fresh", is_flag=True, help="Set the run that is there aside and begin anew.")
@click.option("--list", "list_", is_flag=True, help="List the recipes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def train(
    name: str | None,
    settings: tuple[str, ...],
    out: str | None,
    dry_run: bool,
    fresh: bool,
    list_: bool,
    as_json: bool,
) -> None:
    """Train a model by a recipe.

    \b
    trivium train --list
    trivium train gpt --help
    trivium train gpt depth=6 data=books/ --dry-run
    trivium train gpt depth=6 data=books/
    trivium train ./mine.py steps=500 --out runs/mine
    torchrun --nproc-per-node 2 -m trivium train gpt data=books/

    NAME is a recipe, a file of Python with one of your own, or the folder of a run. Without data,
    a recipe takes some that are at hand. The same command goes on with a run that was stopped, and
    prints the results of one that is done. `trivium show runs/gpt` prints its card.
    """
    if list_:
        _list(as_json)
        return
    if name is None:
        raise UsageError("name a recipe: `trivium train --list` shows all")
    recipe = find(name)
    assignments = [*recipe.assignments, *settings]
    assignments += [f"out={out}"] if out is not None else []
    assignments += ["dry_run=yes"] if dry_run else []
    assignments += ["fresh=yes"] if fresh else []
    results = _run(recipe, assignments)
    if int(os.environ.get("RANK", "0")) == 0:  # of several processes one speaks
        _print(results, as_json)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _leave()


def _leave() -> None:
    """End the process at once. A thread of PyTorch's collectives that wants something of Python
    while Python ends aborts the process, and with it the others of `torchrun`."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def _list(as_json: bool) -> None:
    if as_json:
        records = {
            name: {"about": line, "settings": [f._asdict() for f in fields_in(source_of(name))]}
            for name, line in RECIPES.items()
        }
        print_json(records)
        return
    print_table(("recipe", "what it does"), list(RECIPES.items()))


def _run(recipe: Recipe, assignments: list[str]) -> Any:
    try:
        # What a recipe of the user's own needs is for the user to know.
        with local.needed() if recipe.ours else contextlib.nullcontext():
            config_class, main = recipe.load()
        results = main(fill(config_class, assignments))
    except KeyboardInterrupt as error:
        message = str(error) or "stopped: the same command begins again where it can"
        click.echo("\n" + printable(message), err=True)
        raise SystemExit(130) from None
    if not isinstance(results, dict):
        raise UsageError(f"{recipe.source}: main(config) returns {results!r}, not its results")
    return results


def _print(results: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(results)
        return
    from trivium.recipes.card import shown

    rows = [shown(*pair) for pair in results.items()]
    width = max((len(key) for key, _ in rows), default=0) + 2
    for key, value in rows:
        click.echo(printable(f"{key:<{width}}{value}"))
