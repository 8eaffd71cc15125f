"""`optimise-prompt`: finds words and examples with which a model does a task better."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trivium.cli import options
from trivium.cli.console import print_json, print_table
from trivium.cli.render import printable
from trivium.cli.settings import Settings
from trivium.errors import UsageError
from trivium.files import write_atomic
from trivium.intervals import wilson

if TYPE_CHECKING:
    from trivium.llmos.tasks.asking import Asker
    from trivium.llmos.tasks.optimising import Scored, Search

JOURNAL, PROMPT, EXAMPLES = "journal.jsonl", "prompt.json", "examples.jsonl"


@click.command("optimise-prompt")
@click.argument("task_file", metavar="TASK.jsonl", type=click.Path(path_type=Path))
@options.model
@click.option("--instruction", metavar="TEXT", default="", help="What to begin with.")
@click.option("--label", multiple=True, metavar="TEXT", help="A label (default: all outputs).")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="optimised",
    show_default=True,
    metavar="DIR",
    help="Where the prompt, and all that was measured, is kept.",
)
@click.option("--rounds", type=click.IntRange(0), default=2, help="Of proposals.")
@click.option("--proposals", type=click.IntRange(1), default=4, help="Of a round.")
@click.option("--shots", default="1,2,4,8", help="How many examples to show.", show_default=True)
@click.option("--draws", type=click.IntRange(1), default=2, help="Of examples, for each number.")
@click.option("--seed", type=int, default=0, help="Of the halves and the draws.")
@options.device
@options.threads
@options.as_json
def optimise_prompt(
    task_file: Path,
    model: str,
    instruction: str,
    label: tuple[str, ...],
    output: Path,
    rounds: int,
    proposals: int,
    shots: str,
    draws: int,
    seed: int,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Find a better prompt for a task.

    \b
    trivium optimise-prompt reviews.jsonl
    trivium optimise-prompt reviews.jsonl -m remote:gpt-4.1-mini --instruction "Is it praise?"
    trivium run --task classify --label good --label bad \\
        --examples optimised/examples.jsonl "What a film!"

    TASK.jsonl holds {"input": TEXT, "output": TEXT} on every line. The model proposes instructions,
    examples are drawn; a development half decides, a held-out half tells what it is worth. The
    result is never worse on the first than what it began with. The same command goes on with a
    search that was stopped.
    """
    from dataclasses import replace

    from trivium.cli.task import open_asker
    from trivium.llmos.tasks import optimising
    from trivium.llmos.tasks.task import read_examples

    counts = _counts(shots)
    examples = read_examples(task_file)
    parts = optimising.Parts.of(examples, seed)
    task = optimising.task_for(examples, label)
    task = replace(task, instruction=instruction)
    with open_asker(Settings(model, Path(), device=device, threads=threads)) as asker:
        name = optimising.search_name(task, asker.name, parts, seed)
        journal = optimising.Journal(output / JOURNAL, name)
        search = optimising.Search(task, asker, parts, journal, _say, seed)
        try:
            best = search.run(rounds=rounds, proposals=proposals, shots=counts, draws=draws)
            report = _report(search, asker, best, counts)
        except KeyboardInterrupt:
            _say(f"stopped: what was measured is kept in {output}; the same command goes on")
            raise SystemExit(130) from None
    _write(output, report)
    if as_json:
        print_json(report)
    else:
        _print(report, output)


def _say(line: str) -> None:
    click.echo(printable(line), err=True)


def _counts(shots: str) -> list[int]:
    try:
        counts = [int(part) for part in shots.split(",") if part.strip()]
    except ValueError:
        counts = [-1]
    if any(count < 1 for count in counts):
        raise UsageError(f"--shots {shots}: expected numbers above 0 with commas between them")
    return counts


def _report(search: "Search", asker: "Asker", best: "Scored", counts: Sequence[int]) -> Any:
    """What is written to the disk and printed."""
    from trivium.llmos.tasks.optimising import gain

    first = search.tried[0]
    held = search.parts.held_out
    before, after = search.score(first.task, held), search.score(best.task, held)
    change, low, high = gain(before, after)
    by_shots = search.by_shots(best.task, counts)
    return {
        "model": asker.name,
        "instruction": best.task.instruction,
        "examples": [{"input": e.input, "output": e.output} for e in best.task.examples],
        "asked": best.task.prompt.instruction,
        "tried": len(search.tried),
        "development": {"before": _share(first), "after": _share(best)},
        "held_out": {
            "before": _share(before),
            "after": _share(after),
            "gain": round(change, 4),
            "interval": [round(low, 4), round(high, 4)],
        },
        "by_shots": [{"shots": count, **_share(found)} for count, found in by_shots],
    }


def _share(found: "Scored") -> dict[str, Any]:
    count = len(found.right)
    low, high = wilson(found.count, count)
    return {
        "right": found.count,
        "of": count,
        "share": round(found.count / count, 4),
        "interval": [round(low, 4), round(high, 4)],
    }


def _write(output: Path, report: Any) -> None:
    write_atomic(output / PROMPT, json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    lines = [json.dumps(example, ensure_ascii=False) + "\n" for example in report["examples"]]
    if lines:
        write_atomic(output / EXAMPLES, "".join(lines))
    else:
        (output / EXAMPLES).unlink(missing_ok=True)


def _print(report: Any, output: Path) -> None:
    rows = [
        (name, _said(report[part]["before"]), _said(report[part]["after"]))
        for name, part in (("development", "development"), ("held out", "held_out"))
    ]
    print_table(("right", "before", "after"), rows)
    low, high = report["held_out"]["interval"]
    click.echo(
        f"\ngain on held-out texts: {report['held_out']['gain']:+.1%} ({low:+.1%} – {high:+.1%})"
    )
    click.echo("\n" + "\n".join(f"{r['shots']} shots: {_said(r)}" for r in report["by_shots"]))
    click.echo(printable(f"\nasked: {report['asked']}"))
    many = len(report["examples"])
    click.echo(f"{many} examples shown; kept in {output}")


def _said(share: Any) -> str:
    low, high = share["interval"]
    return f"{share['share']:.1%} ({low:.1%} – {high:.1%})"
