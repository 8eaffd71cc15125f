"""`complete`: continue a text, as a base model does, with every knob of the sampler."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trivium import files
from trivium.cli import attachments, continuation, local, options
from trivium.cli.console import print_json
from trivium.cli.logprobs import Row, Rows
from trivium.cli.render import Screen
from trivium.errors import UsageError
from trivium.llmos.messages import TextDelta

if TYPE_CHECKING:
    from trivium.language.engine import Engine
    from trivium.language.generation import End, Request, Token

TOP = 5  # alternatives of --logprobs, if it does not say how many


class Completing(click.Command):
    """`--logprobs` may stand without a number."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        for place, word in enumerate(args[:end]):
            if word == "--logprobs" and not "".join(args[place + 1 : place + 2]).isdecimal():
                args[place] = f"--logprobs={TOP}"
        return super().parse_args(ctx, args)


@click.command(cls=Completing)
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
@click.option(
    "--samples",
    type=click.IntRange(1, 1024),
    default=1,
    metavar="N",
    help="Draw N texts, with the seeds seed, seed + 1 and so on.",
)
@click.option(
    "--beams",
    type=click.IntRange(1, 256),
    metavar="K",
    help="Search for the likeliest text with K beams; with --samples N, for the N likeliest.",
)
@click.option(
    "--length-penalty",
    type=float,
    metavar="X",
    help="Of --beams: the larger, the longer the text (default: 1).",
)
@click.option(
    "--logprobs",
    type=click.IntRange(0, 100),
    metavar="[K]",
    help=f"Show how likely each token was, and the K likeliest in its place (default: {TOP}).",
)
@click.option("--echo", is_flag=True, help="Show the prompt too; with --logprobs, its tokens.")
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
    trivium complete "The capital of France is" -n 3 --echo --logprobs
    trivium complete "Once upon a time" -t 0.8 --samples 3 --seed 1

    The continuation goes to stdout. --schema, --regex and --choice make it well-formed.
    """
    prompt = attachments.check_prompt(" ".join(text) or attachments.read_stdin())
    local.require_here(model, "to continue a text")
    with local.needed():
        sampling, grammar = _sampling(given), _grammar(given)
    _check(given, drawn=sampling.temperature > 0)
    engine = local.open_engine(model, device=given["device"], threads=given["threads"])
    from trivium.language.generation import Request

    request = Request(
        engine.tokenizer.encode(prompt, wrap=True),
        sampling,
        max_tokens=given["max_tokens"],
        stop=given["stop"],
        grammar=grammar,
        top_logprobs=given["logprobs"],
    )
    if given["as_json"]:
        _print_json(engine, request, prompt, given)
    else:
        _show(engine, request, prompt, given)


def _show(engine: "Engine", request: "Request", prompt: str, given: dict[str, Any]) -> None:
    from trivium.language.generation import Token

    screen, rows = Screen("stream"), None
    if request.top_logprobs is not None:
        known = continuation.prompt_rows(engine, request) if given["echo"] else []
        rows = Rows(engine.tokenizer)
        for row in known:
            rows.show(row)

    def show(event: "Token | End") -> None:
        if rows is None and given["stream"]:
            screen.show(TextDelta(event.text))
        elif rows is not None and isinstance(event, Token):
            rows.show(Row(event.id, event.logprob, event.top))

    try:
        for number, (note, events) in enumerate(_answers(engine, request, given), start=1):
            if note and given["samples"] > 1:
                screen.end_line()
                words = ", ".join(f"{key} {value:.6g}" for key, value in note.items())
                screen.note(f"[{number}/{given['samples']}, {words}]")
            if given["echo"] and rows is None:
                screen.show(TextDelta(prompt))
            answer = continuation.collect(note, events, show)
            if rows is None and not given["stream"]:
                screen.show(TextDelta(answer.text))
    finally:
        screen.end_line()


def _print_json(engine: "Engine", request: "Request", prompt: str, given: dict[str, Any]) -> None:
    start, logprobs = time.monotonic(), request.top_logprobs is not None
    echo: dict[str, Any] = {"prompt": prompt} if given["echo"] else {}
    if given["echo"] and logprobs:
        rows = continuation.prompt_rows(engine, request)
        echo["prompt_logprobs"] = [row.record(engine.tokenizer) for row in rows]
    answers = [
        continuation.collect(note, events, lambda event: None)
        for note, events in _answers(engine, request, given)
    ]
    made = continuation.report(engine, answers, logprobs=logprobs)
    print_json({**made, **echo, "seconds": round(time.monotonic() - start, 3)})


def _answers(engine: "Engine", request: "Request", given: dict[str, Any]) -> continuation.Answers:
    if given["beams"] is None:
        return continuation.draw(engine, request, given["samples"])
    penalty = 1.0 if given["length_penalty"] is None else given["length_penalty"]
    return continuation.search(engine, request, given["beams"], given["samples"], penalty)


def _check(given: dict[str, Any], *, drawn: bool) -> None:
    """Raises UsageError for options that contradict one another."""
    if given["beams"] is None:
        if given["length_penalty"] is not None:
            raise UsageError("--length-penalty is of --beams: give both")
        if given["samples"] > 1 and not drawn:
            raise UsageError(
                f"--samples {given['samples']} would give the same text each time: give a "
                "--temperature above 0, or --beams"
            )
        return
    context = click.get_current_context()
    for name in (*_sampler(), "stop"):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"--beams looks for the likeliest text: {option} has no say in it")


def _sampler() -> list[str]:
    from dataclasses import fields

    from trivium.language.sampling import Sampling

    return [field.name for field in fields(Sampling)]


def _sampling(given: dict[str, Any]) -> Any:
    from trivium.language.sampling import Sampling

    return Sampling(**{name: given[name] for name in _sampler()})


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
    return constrain.compile_json_schema(files.read_json(given["schema"]))
