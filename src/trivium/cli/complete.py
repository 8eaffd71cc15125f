"""`complete`: continue a text, as a base model does, with every knob of the sampler."""

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trivium.cli import attachments, local, options
from trivium.cli.console import print_json
from trivium.cli.render import Screen
from trivium.errors import NotFound, UsageError
from trivium.llmos.messages import TextDelta

if TYPE_CHECKING:
    from trivium.language.engine import End, Engine, Token


@click.command()
@click.argument("text", nargs=-1)
@options.model
@click.option("-n", "--max-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("-t", "--temperature", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--top-k", type=click.IntRange(0), default=0, help="Draw from the k best tokens.")
@click.option("--top-p", type=click.FloatRange(0, 1), default=1.0, help="Draw from this mass.")
@click.option("--min-p", type=click.FloatRange(0, 1), default=0.0, help="… at least this likely.")
@click.option("--repetition-penalty", type=float, default=1.0, metavar="X")
@click.option("--frequency-penalty", type=float, default=0.0, metavar="X")
@click.option("--presence-penalty", type=float, default=0.0, metavar="X")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this (may be repeated).")
@click.option("--schema", type=click.Path(path_type=Path), help="A JSON schema to follow.")
@click.option("--regex", metavar="PATTERN", help="A regular expression to match.")
@click.option("--choice", multiple=True, metavar="TEXT", help="One of these (may be repeated).")
@click.option("--stream/--no-stream", default=True, help="Print as it is made (default).")
@options.seed
@options.device
@options.threads
@options.offline
@options.as_json
def complete(text: tuple[str, ...], model: str, **given: Any) -> None:
    """Continue a text, without template and tools.

    \b
    trivium complete "The three primary colours are"
    echo "2, 4, 8," | trivium complete -n 12
    trivium complete "The capital of France is" --choice " Paris" --choice " Rome"

    The continuation goes to stdout. --schema, --regex and --choice make it well-formed.
    """
    prompt = attachments.check_prompt(" ".join(text) or attachments.read_stdin())
    if model.startswith("remote:"):
        raise UsageError(
            f"{model} is at an endpoint, which answers requests: `trivium run`; give a model on "
            "this machine with -m to continue a text"
        )
    with local.needed():
        sampling, grammar = _sampling(given), _grammar(given)
        engine = _engine(model, given)
        from trivium.language.engine import End, Request

    request = Request(
        engine.tokenizer.encode(prompt, wrap=True),
        sampling,
        max_tokens=given["max_tokens"],
        stop=given["stop"],
        grammar=grammar,
    )
    screen = Screen("stream")
    pieces: list[Token | End] = []
    start = time.monotonic()
    with contextlib.closing(engine.generate(request)) as events:  # type: ignore[type-var]
        for event in events:
            pieces.append(event)
            if given["stream"] and not given["as_json"]:
                screen.show(TextDelta(event.text))
    end = pieces[-1]
    assert isinstance(end, End)
    whole = "".join(piece.text for piece in pieces)
    if given["as_json"]:
        print_json(_report(engine, end, whole, time.monotonic() - start))
    elif not given["stream"]:
        screen.show(TextDelta(whole))
    screen.end_line()


def _engine(model: str, given: dict[str, Any]) -> "Engine":
    from trivium import hub

    path = hub.find(model)
    import torch

    from trivium.language.engine import Engine
    from trivium.models import load

    if given["threads"]:
        torch.set_num_threads(given["threads"])
    return Engine(load(path, device=given["device"] or "auto"))


def _sampling(given: dict[str, Any]) -> Any:
    from dataclasses import fields

    from trivium.language.sampling import Sampling

    return Sampling(**{field.name: given[field.name] for field in fields(Sampling)})


def _grammar(given: dict[str, Any]) -> str | None:
    wanted = [name for name in ("schema", "regex", "choice") if given[name] not in (None, ())]
    if len(wanted) > 1:
        raise UsageError(f"--{wanted[0]} and --{wanted[1]} cannot both hold: give one")
    if not wanted:
        return None
    from trivium.language import constrain

    if given["regex"] is not None:
        return constrain.compile_regex(given["regex"])
    if given["choice"]:
        return constrain.compile_choice(given["choice"])
    path: Path = given["schema"]
    try:
        return constrain.compile_json_schema(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise NotFound(f"no such file: {path}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(f"{path} is not a JSON schema: {error}") from None


def _report(engine: "Engine", end: "End", text: str, seconds: float) -> dict[str, Any]:
    return {
        "model": engine.language_model.name,
        "text": text,
        "finish_reason": end.reason,
        "usage": {
            "prompt_tokens": end.prompt_tokens,
            "completion_tokens": end.completion_tokens,
            "cached_tokens": end.cached_tokens,
        },
        "seconds": round(seconds, 3),
    }
