"""`embed`: vectors of texts, and search by meaning."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trivium import hub
from trivium.cli import local, nearest, options, vectors
from trivium.cli.progress import progress
from trivium.cli.texts import FORMATS, Input, format_of, opened
from trivium.errors import NotFound, UsageError

if TYPE_CHECKING:
    import numpy as np

    from trivium.language.embed import Embedder

BLOCK = 1024  # texts that are sorted by length and embedded together
BLOCK_SIZE = 4 << 20  # characters of them

Line = tuple[int, int, str]  # index, number of the line, text


def _default_embedder() -> str:
    return next(name for name, entry in hub.CATALOGUE.items() if entry.kind == "embedding")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "-m",
    "--model",
    metavar="NAME",
    default=_default_embedder,
    shell_complete=options.complete_model,
    help="An embedding model: a name of `trivium models`, a folder or GGUF file.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Write OUT.npy, OUT.npz or OUT.jsonl instead of JSON lines onto stdout.",
)
@click.option("--force", is_flag=True, help="Replace an OUT that is there already.")
@click.option(
    "--format",
    type=click.Choice(FORMATS),
    help="What FILE holds (default: by its ending; lines if that says nothing).",
)
@click.option("--field", metavar="NAME", help="The field that holds the text, in JSONL and CSV.")
@click.option(
    "--normalise/--no-normalise", default=True, help="Give vectors the length 1 (default)."
)
@click.option(
    "--truncate", is_flag=True, help="Read only the beginning of texts that are too long."
)
@click.option(
    "--search",
    "queries",
    multiple=True,
    metavar="QUERY",
    help="Print the nearest texts instead of vectors (may be given again).",
)
@click.option("-k", "--count", type=click.IntRange(1), default=5, help="How many (default: 5).")
@click.option(
    "--vectors",
    "stored",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="For --search: what -o wrote of this FILE before, so that nothing is computed again.",
)
@options.device
@options.threads
@options.as_json
def embed(file: Path, queries: tuple[str, ...], **given: Any) -> None:
    """Turn texts into vectors, or search among them.

    \b
    trivium embed notes.txt > notes.jsonl
    trivium embed reviews.csv --field review -o reviews.npy
    trivium embed notes.txt --search "when is the rent due?"

    FILE holds a text on each line, or is JSONL or CSV; - is stdin. Row i belongs to text i. It may
    be larger than memory. A run that was interrupted goes on when the same command is given again.
    """
    _check(queries, given)
    local.require_here(given["model"], "to embed texts")
    path = hub.find(given["model"])
    with opened(file) as source:
        texts = source.texts(given["format"] or format_of(file), given["field"])
        lines = ((index, number, text) for index, (number, text) in enumerate(texts))
        work = Work(_open(path, given), source, lines, given)
        if queries:
            found = work.search(queries, given["count"], given["stored"])
            nearest.show(queries, found, as_json=given["as_json"])
        elif given["output"] is None:
            work.print()
        else:
            work.write(given["output"], _identity(file, path, given))


def _check(queries: Sequence[str], given: dict[str, Any]) -> None:
    """Raises UsageError for options that contradict one another, and for an output that cannot be
    written."""
    out: Path | None = given["output"]
    if not queries and (given["stored"] or given["as_json"]):
        name = "--vectors" if given["stored"] else "--json"
        raise UsageError(f"{name} is for --search QUERY; vectors are printed as JSON lines anyway")
    if queries and out is not None:
        raise UsageError(
            f"--search prints texts, no vectors for {out}: make them first, then search"
        )
    if any(not query.strip() for query in queries):
        raise UsageError("--search needs a text that is not empty")
    if given["stored"] and not given["stored"].exists():
        raise NotFound(f"no such file: {given['stored']}")
    if out is not None:
        if out.suffix not in vectors.ENDINGS:
            raise UsageError(f"{out}: vectors are written as {', '.join(vectors.ENDINGS)}")
        if out.is_dir() or (out.exists() and not given["force"]):
            way = "it is a folder" if out.is_dir() else "--force replaces it"
            raise UsageError(f"{out} exists already: {way}")


def _open(path: Path, given: dict[str, Any]) -> "Embedder":
    with local.needed():
        from dataclasses import replace

        import torch

        from trivium.language.embed import Embedder

    if given["threads"] is not None:
        torch.set_num_threads(given["threads"])
    embedder = Embedder.load(path, device=given["device"] or "auto")
    return replace(embedder, normalise=given["normalise"])


def _identity(file: Path, model: Path, given: dict[str, Any]) -> Any:
    """What decides which vectors come out; None for stdin, which nobody can read again."""
    if str(file) == "-":
        return None
    weights = model / "model.safetensors" if model.is_dir() else model
    facts = [
        (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
        for path in (file, weights)
        if path.exists()
    ]
    return [facts, *(given[name] for name in ("format", "field", "normalise", "truncate"))]


@dataclass
class Work:
    """Texts on their way through an embedder."""

    embedder: "Embedder"
    source: Input
    lines: Iterator[Line]
    given: dict[str, Any]
    cut: int = 0  # texts of which only the beginning was read

    def print(self) -> None:
        for block, rows in self._embedded(self.lines):
            for (index, _, text), row in zip(block, rows, strict=True):
                click.echo(vectors.json_row(index, text, row), nl=False)
        self._tell_cut()

    def write(self, out: Path, identity: Any) -> None:
        start = time.monotonic()
        with vectors.VectorFile(out, self.embedder.width, identity) as file:
            before = file.rows
            if before:
                click.echo(f"{before:,} texts are done already", err=True)
            rest = (line for line in self.lines if line[0] >= before)
            try:
                for block, rows in self._embedded(rest):
                    file.append([text for _, _, text in block], rows)
            except KeyboardInterrupt:
                way = "; the same command goes on from there" if identity is not None else ""
                click.echo(f"\nstopped after {file.rows:,} texts{way}", err=True, nl=False)
                raise
            file.finish()
        self._tell_cut()
        seconds = time.monotonic() - start
        size = f"{file.rows:,} × {self.embedder.width}"
        click.echo(f"{out}: vectors {size}, by {self.embedder.name} ({seconds:.1f} s)", err=True)

    def search(
        self, queries: Sequence[str], count: int, stored: Path | None
    ) -> list[list[nearest.Hit]]:
        if long := self._too_long([(0, 0, query) for query in queries]):
            raise UsageError(f"the query {self._excess(long[0])}: ask something shorter")
        found = nearest.Nearest(self.embedder.embed(queries).numpy(), count)
        if stored is None:
            lines = (line for line in self.lines if line[2].strip())
            for block, rows in self._embedded(lines, truncate=True):
                found.add(block, rows)
            self._tell_cut()
            return found.hits()
        known = vectors.read_vectors(stored)
        if known.shape[1] != self.embedder.width:
            raise UsageError(
                f"{stored} has vectors of {known.shape[1]} numbers, {self.embedder.name} makes "
                f"{self.embedder.width}: they are of another model"
            )
        total = 0
        for block in _blocks(self.lines):
            total += len(block)
            rows = known[block[0][0] : block[0][0] + len(block)]
            if len(rows) == len(block):
                found.add(block, rows)
        if total != len(known):
            raise UsageError(
                f"{stored} has {len(known):,} vectors and {self.source.name} {total:,} texts: they "
                "are of another file"
            )
        return found.hits()

    def _embedded(
        self, lines: Iterator[Line], *, truncate: bool | None = None
    ) -> Iterator[tuple[list[Line], "np.ndarray"]]:
        """Blocks of texts, each with its vectors, float32 (N, C)."""
        truncate = self.given["truncate"] if truncate is None else truncate
        start, done = time.monotonic(), 0
        with progress(self.embedder.name, self.source.size) as tell:
            for block in _blocks(lines):
                long = self._too_long(block)
                if long and not truncate:
                    where = f"{self.source.name}, line {long[0][1]}, {self._excess(long[0])}"
                    raise UsageError(
                        f"{where}: split it, "
                        "or read only the beginning of such texts with --truncate"
                    )
                self.cut += len(long)
                texts = [text for _, _, text in block]
                yield block, self.embedder.embed(texts, truncate=True).numpy()
                done += len(block)
                tell(self.source.done, f"{done / (time.monotonic() - start):,.0f} texts/s")

    def _too_long(self, block: Sequence[Line]) -> list[Line]:
        limit = self.embedder.max_tokens
        # A character gives four tokens at most (its bytes), so short texts need no counting.
        return [
            line
            for line in block
            if 4 * len(line[2]) + 2 > limit and self.embedder.length(line[2]) > limit
        ]

    def _excess(self, line: Line) -> str:
        tokens, limit = self.embedder.length(line[2]), self.embedder.max_tokens
        return f"has {tokens:,} tokens, and {self.embedder.name} reads {limit:,}"

    def _tell_cut(self) -> None:
        if self.cut:
            what = "1 text is" if self.cut == 1 else f"{self.cut:,} texts are"
            limit = self.embedder.max_tokens
            click.echo(f"{what} longer than {limit} tokens: only the beginning was read", err=True)


def _blocks(lines: Iterator[Line]) -> Iterator[list[Line]]:
    block: list[Line] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line[2])
        if len(block) == BLOCK or size >= BLOCK_SIZE:
            yield block
            block, size = [], 0
    if block:
        yield block
