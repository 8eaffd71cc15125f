"""`data`: what a model would be trained on, shown token by token, and checked before it is."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from trivium.cli import config, local, options
from trivium.cli.console import print_json
from trivium.cli.render import coloured, printable
from trivium.errors import NotFound, UsageError

if TYPE_CHECKING:
    from trivium.data.batches import Batch
    from trivium.language.chat_template import ChatTemplate
    from trivium.language.tokenizer import Tokenizer

KINDS = ("text", "conversations", "preferences")
LEARNT, OTHER = "\x1b[32m", "\x1b[2m"  # green; dim
kind_option: Callable[[Any], Any] = click.option(
    "--format",
    "kind",
    type=click.Choice(KINDS),
    help="What SOURCE holds (default: what its first record is).",
)


@click.group()
def data() -> None:
    """Show and check what models are trained on.

    SOURCE is a file, a folder, a glob or hf:NAME: text, JSON lines, .json, .csv, .parquet, also
    compressed. docs/training.md lists the formats of records.
    """


@data.command()
@click.argument("source", required=False)
@options.model
@kind_option
@click.option("--count", type=click.IntRange(1), default=3, help="Rows to show (default: 3).")
@click.option("--length", type=click.IntRange(1), metavar="T", help="Tokens of a row.")
@click.option("--seed", type=int, help="Shuffle as in training (default: the order of the files).")
@click.option("--skip-broken", is_flag=True, help="Leave out records that cannot be read.")
def show(
    source: str | None,
    model: str,
    kind: str | None,
    count: int,
    length: int | None,
    seed: int | None,
    skip_broken: bool,
) -> None:
    """Print rows as a model is trained on them.

    \b
    trivium data show chats.jsonl
    trivium data show books/ --length 256 --seed 0

    What carries loss is green on a terminal, and stands in ⟦ ⟧ otherwise. Texts that share a row
    are told apart. Without SOURCE it is the text that ships inside Python. -m also takes a folder
    with a tokenizer.json.
    """
    with local.needed():
        from trivium import data as loaded
        from trivium.data.conversation import opened
    tokenizer, template = _tokenizer(model)
    corpus = opened(source, kind, skip_broken=skip_broken)
    end = tokenizer.eos if tokenizer.eos is not None else 0
    some: dict[str, Any] = {"rows": 1, "seed": seed, "epochs": 1, "ahead": 0}
    click.echo(printable(corpus.description), err=True)
    if isinstance(corpus, loaded.Documents):
        batches: Any = loaded.TokenBatches(
            corpus,
            tokenizer.encode_many,
            length=length or 256,
            begin=tokenizer.bos,
            end=end,
            **some,
        )
    else:
        make = (
            loaded.ConversationBatches
            if isinstance(corpus, loaded.Conversations)
            else loaded.PreferenceBatches
        )
        render = _render(model, tokenizer, template)
        some |= {"length": length or 1024, "filler": end, "too_long": "truncate"}
        batches = make(corpus, render, **some)  # type: ignore[arg-type]
    for number, batch in enumerate(islice(batches, count), 1):
        for line in _shown(tokenizer, batch, number):
            click.echo(line)
    for what in ("truncated", "dropped"):
        if many := getattr(batches, what, 0):
            click.echo(f"{what}: {many:,} of those read, longer than {batches.length:,}", err=True)
    if corpus.broken:
        click.echo(f"broken: {corpus.broken:,}, first {corpus.first_broken[0]}", err=True)


def _shown(tokenizer: "Tokenizer", batch: "Batch", number: int) -> Iterator[str]:
    """The lines of a batch: each row, or each reply, with its segments."""
    from trivium.data import IGNORE

    ids, targets = batch["ids"], batch["targets"]
    for i in range(len(ids)):
        row, wanted = ids[i].tolist(), targets[i].tolist()
        learnt = sum(target != IGNORE for target in wanted)
        if "ranks" in batch:
            used, spans = int(batch["ends"][i]) + 1, [(0, int(batch["ends"][i]) + 1)]
            name = f"prompt {number}, reply of rank {int(batch['ranks'][i])}"
        else:
            inside = (batch["segments"][i] >= 0).tolist()
            used = sum(inside)
            first = (batch["positions"][i] == 0).tolist()
            starts = [at for at in range(used) if first[at]]
            spans = list(zip(starts, [*starts[1:], used], strict=True))
            name = f"row {number}"
        many = f", {len(spans)} segments" if len(spans) > 1 else ""
        yield f"── {name}: {used:,} of {len(row):,} tokens, {learnt:,} carry loss{many}"
        for segment, (start, stop) in enumerate(spans):
            if len(spans) > 1:
                yield f"── segment {segment}, {stop - start:,} tokens"
            last = wanted[stop - 1]
            tokens = [*row[start:stop], *([] if last == IGNORE else [last])]
            mine = [False, *(target != IGNORE for target in wanted[start:stop])]
            yield _marked(tokenizer, tokens, mine[: len(tokens)])
        if used < len(row):
            yield f"── {len(row) - used:,} tokens of padding"


def _marked(tokenizer: "Tokenizer", ids: Sequence[int], learnt: Sequence[bool]) -> str:
    """The text of tokens, with those marked that carry loss."""
    colour, terminal = coloured(sys.stdout), sys.stdout.isatty()
    pieces, start = [], 0
    for i in range(1, len(ids) + 1):
        if i < len(ids) and learnt[i] == learnt[start]:
            continue
        text = tokenizer.decode(ids[start:i], skip_special=False)
        text = printable(text) if terminal else text
        if colour:
            text = f"{LEARNT if learnt[start] else OTHER}{text}\x1b[0m"
        elif learnt[start]:
            text = f"⟦{text}⟧"
        pieces.append(text)
        start = i
    return "".join(pieces)


@data.command()
@click.argument("source", required=False)
@click.option(
    "-m",
    "--model",
    metavar="NAME",
    envvar="TRIVIUM_MODEL",
    shell_complete=options.complete_model,
    help="Whose tokens are counted (default: those of the default model, else characters).",
)
@kind_option
@click.option("--length", type=click.IntRange(1), metavar="T", help="Count what is longer.")
@options.as_json
def check(
    source: str | None, model: str | None, kind: str | None, length: int | None, as_json: bool
) -> None:
    """Read everything and tell what is there, how long it is, and what is broken.

    \b
    trivium data check chats.jsonl --length 2048

    It fails if a record is broken, and names the first ones with file and line.
    """
    from trivium.cli.data_check import counted
    from trivium.data.conversation import Conversations, Preferences, opened

    corpus = opened(source, kind, skip_broken=True)
    name, found = model or config.default_model(), None
    try:
        found = _tokenizer(name)
    except (NotFound, UsageError) as error:
        if model:
            raise
        click.echo(f"lengths in characters, not tokens: {error}", err=True)
    render = None
    if found and isinstance(corpus, Conversations | Preferences):
        render = _render(name, *found)
    counts = counted(corpus, found[0].encode_many if found else None, render)
    longer = sum(size > length for size in counts.sizes) if length else None
    facts: dict[str, Any] = {
        "source": corpus.name,
        "bytes": corpus.bytes,
        corpus.kind: counts.items,
        "broken": corpus.broken,
        "shapes": {shape: many for shape, many in counts.shapes.most_common() if many},
        counts.unit: sum(counts.sizes),
        "carry loss": counts.learnt if found else None,
        "lengths": counts.percentiles(),
        "longer": longer,
    }
    if as_json:
        print_json({**facts, "first_broken": corpus.first_broken})
    else:
        _print(facts)
        for line in corpus.first_broken:
            click.echo(printable(line), err=True)
    if corpus.broken:
        many = "a broken record" if corpus.broken == 1 else f"{corpus.broken:,} broken records"
        raise UsageError(f"{many} in {corpus.name}")


def _print(facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        if value is None:
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{name}: {many:,}" for name, many in value.items())
        words = f"{value:,}" if isinstance(value, int) else value
        click.echo(printable(f"{key:<15}{words}"))


def _tokenizer(model: str) -> tuple["Tokenizer", "ChatTemplate | None"]:
    """The tokenizer of a model by name or path, or of a folder that holds nothing else."""
    from pathlib import Path

    from trivium import hub

    local.require_here(model, "whose tokenizer is used")
    folder = Path(os.path.expanduser(model))
    path = folder if (folder / "tokenizer.json").is_file() else hub.find(model)
    with local.needed():
        from trivium.gguf_file import GGUFFile
        from trivium.language.chat_template import ChatTemplate
        from trivium.language.tokenizer import Tokenizer
    if path.is_dir():
        return Tokenizer.from_folder(path), ChatTemplate.from_folder(path)
    metadata = GGUFFile(path).metadata
    return Tokenizer.from_gguf(metadata), ChatTemplate.from_gguf(metadata)


def _render(model: str, tokenizer: "Tokenizer", template: "ChatTemplate | None") -> Any:
    from functools import partial

    from trivium.language.rendering import render

    if template is None:
        raise UsageError(
            f"{model} has no chat template, which spells conversations: name a model that talks, "
            "with -m"
        )
    return partial(render, tokenizer, template)
