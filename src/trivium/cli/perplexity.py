"""`perplexity`: how well models predict a text."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trivium import hub
from trivium.cli import config, local, options
from trivium.cli.console import print_json, print_table
from trivium.cli.progress import progress
from trivium.cli.texts import Input, opened
from trivium.errors import UsageError

if TYPE_CHECKING:
    from trivium.evaluate.perplexity import Perplexity
    from trivium.language.engine import Engine

PRECISIONS = ("auto", "packed", "int8", "bfloat16", "float32")


@dataclass(frozen=True)
class Result:
    """What one model, in one precision, makes of the text."""

    model: str
    precision: str
    value: "Perplexity"
    seconds: float

    def record(self) -> dict[str, Any]:
        value = self.value
        return {
            "model": self.model,
            "precision": self.precision,
            "perplexity": value.perplexity,
            "perplexity_error": value.perplexity_error,
            "nll_mean": value.mean,
            "nll_error": value.mean_error,
            "bits_per_byte": value.bits_per_byte,
            "bits_per_token": value.bits_per_token,
            "tokens": value.tokens,
            "bytes": value.bytes,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(value.tokens / self.seconds, 1),
        }


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    shell_complete=options.complete_model,
    help="A name of `trivium models`, a folder or GGUF file (may be given again, to compare).",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help="How weights are rounded (may be given again, to compare; default: auto).",
)
@click.option("--context", type=int, metavar="N", help="Tokens of a window (default: 1024).")
@click.option("--stride", type=int, metavar="N", help="New tokens of a window (default: half).")
@options.device
@options.threads
@options.as_json
def perplexity(
    file: Path,
    models: tuple[str, ...],
    precisions: tuple[str, ...],
    context: int | None,
    stride: int | None,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how well models predict a text.

    \b
    trivium perplexity book.txt
    trivium perplexity book.txt --precision float32 --precision int8
    trivium perplexity book.txt -m smollm2-135m-instruct -m ./model.gguf --json

    FILE holds UTF-8 text; - is stdin. A window slides over the text: every token is scored once,
    with at least the tokens of a window less a stride before it (fewer at the very beginning).
    Compare models that cut text differently by their bits per byte.
    """
    names = models or (os.environ.get("TRIVIUM_MODEL") or config.default_model(),)
    runs = [(name, precision) for name in names for precision in precisions or ("auto",)]
    if str(file) == "-" and len(runs) > 1:
        raise UsageError("stdin can be read once only: give a file to compare models on")
    for name in names:
        local.require_here(name, "to measure it")
        hub.find(name)  # says what is missing before anything is computed
    results = []
    for name, precision in runs:
        with opened(file) as text:
            engine = local.open_engine(
                name,
                device=device,
                threads=threads,
                precision=precision,  # type: ignore[arg-type]
            )
            results.append(_measure(engine, text, context, stride))
    if as_json:
        print_json({"file": str(file), "results": [result.record() for result in results]})
    elif len(results) == 1:
        _print(results[0])
    else:
        _compare(results)


def _measure(engine: "Engine", text: Input, context: int | None, stride: int | None) -> Result:
    from trivium.evaluate.perplexity import Perplexity, TooShort, measure

    loaded = engine.language_model
    start, value = time.monotonic(), Perplexity()
    try:
        with progress(f"{loaded.name} {loaded.precision}", text.size) as tell:
            for value in measure(engine, text.parts(), context=context, stride=stride):
                speed = value.tokens / (time.monotonic() - start)
                tell(value.bytes, f"perplexity {value.perplexity:.4g}, {speed:.0f} tokens/s")
    except KeyboardInterrupt:
        if value.tokens:
            said = f"{value.perplexity:.6g} after {value.tokens:,} tokens"
            click.echo(f"\nstopped: the perplexity is {said}", err=True, nl=False)
        raise
    except TooShort as error:
        raise UsageError(f"{text.name}: {error}") from None
    return Result(loaded.name, loaded.precision, value, time.monotonic() - start)


def _print(result: Result) -> None:
    value = result.value
    rows = {
        "model": f"{result.model}, {result.precision}",
        "perplexity": f"{value.perplexity:.4f} ± {value.perplexity_error:.4f}",
        "bits a byte": f"{value.bits_per_byte:.4f}",
        "bits a token": f"{value.bits_per_token:.4f}",
        "nats a token": f"{value.mean:.4f} ± {value.mean_error:.4f}",
        "scored": f"{value.tokens:,} tokens, {value.bytes:,} bytes",
        "speed": f"{value.tokens / result.seconds:,.0f} tokens/s",
    }
    for key, words in rows.items():
        click.echo(f"{key:<14}{words}")


def _compare(results: Sequence[Result]) -> None:
    """A row for each. `ratio`: of the perplexity to that of the model's first row."""
    first: dict[str, float] = {}
    rows = []
    for result in results:
        value = result.value
        ratio = value.perplexity / first.setdefault(result.model, value.perplexity)
        rows.append(
            (
                result.model,
                result.precision,
                f"{value.perplexity:.4f}",
                f"± {value.perplexity_error:.4f}",
                f"{ratio:.4f}",
                f"{value.bits_per_byte:.4f}",
                f"{value.tokens:,}",
                f"{value.tokens / result.seconds:,.0f}",
            )
        )
    headers = ("model", "precision", "perplexity", "error", "ratio", "bits/byte", "tokens", "tok/s")
    print_table(headers, rows)
