"""How well the default model uses its tools, on tables of requests.

    python bench/requests.py [TABLE …] [--split test] [--base] [--failures] [--perplexity]

requests   tests/llmos/requests.jsonl, by other people: its `dev` half may be looked at while data
           or examples are improved, and `test` is reported
held_out   tests/llmos/held_out_requests.jsonl, by other people: nothing is tuned on it
written    those rows of the recipe's own tables that it does not train on

tool       the right one was called first, or rightly none
arguments  they are among those that are listed, or running them gives the value that is stated;
           free text counts without case, articles and full stops
answer     the value stands in what the model itself says after it has run its tools

The tools are the seven built-in ones; for requests about pictures and documents, whose tools do not
exist yet, four more are offered. --base: the model as published, led by examples. --perplexity: of
the reference text inside CPython, for the weights as published, for those that answer plainly, and
for those with our adapter, which call tools. Intervals: Wilson, 95 %.
"""

import argparse
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trivium import hub
from trivium.data import documents
from trivium.evaluate.perplexity import measure
from trivium.intervals import wilson
from trivium.language.engine import Engine
from trivium.language.pretrained import LanguageModel
from trivium.llmos.builtin import builtin_tools
from trivium.llmos.calculator import calculate
from trivium.llmos.faithful import states
from trivium.llmos.gateway import Gateway, never_ask
from trivium.llmos.kernel import Budget, run
from trivium.llmos.local import LocalModel
from trivium.llmos.messages import Answer, Message, ToolCall
from trivium.llmos.tools import Tool, tool
from trivium.llmos.workspace import Workspace
from trivium.models import load
from trivium.recipes.tool_requests import written

TESTS = Path(__file__).parent.parent / "tests/llmos"
TABLES = {"requests": TESTS / "requests.jsonl", "held_out": TESTS / "held_out_requests.jsonl"}
ANSWERED = {"word_problem_1", "word_problem_2", "arithmetic", "percentage", "unit", "date"}
READ = 20_000  # tokens whose perplexity is measured
LIMIT = Budget(steps=5, tokens=800)


@tool
def draw_picture(prompt: str) -> str:
    """Draw a picture from a description.

    prompt: what it shows
    """
    return "picture-1.png"


@tool
def edit_picture(path: str, instruction: str) -> str:
    """Change a picture as told.

    path: the picture
    instruction: what to change
    """
    return "edited-1.png"


@tool
def cut_out(path: str, what: str) -> str:
    """Cut an object out of a picture.

    path: the picture
    what: the object
    """
    return "cutout-1.png"


@tool
def search_documents(query: str) -> str:
    """Search the collection of documents by meaning.

    query: what to look for
    """
    return "[nothing found]"


LATER: tuple[Tool, ...] = (draw_picture, edit_picture, cut_out, search_documents)
FREE_TEXT = {t.name for t in LATER}


def rows(table: str, split: str) -> Iterator[dict[str, Any]]:
    if table == "written":
        yield from written_rows()
        return
    for line in TABLES[table].read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("split", split) == split:
            yield {"kind": row["tool"] or "none", **row}


def written_rows() -> Iterator[dict[str, Any]]:
    """As of the other tables."""
    for number, found in enumerate(written.problems(held=True)):
        steps = len(found.results)
        row = {"id": f"p{number}", "request": "".join(found.pieces), "tool": "calculate"}
        kind = f"word_problem_{steps}"
        yield {**row, "kind": kind, "value": _number(found.expression)}
    for number, (text, name, arguments) in enumerate(written.requests(held=True)):
        row = {"request": text, "tool": name, "arguments": [arguments]}
        if name == "calculate":
            row["value"] = _number(arguments["expression"])
        if name == "python":
            row["value"] = _printed(arguments["code"])
        yield {"id": f"r{number}", "kind": name, **row}
    for number, (past, text) in enumerate(written.plain(held=True)):
        context = [
            {"role": role, "content": said}
            for turn in past
            for role, said in zip(("user", "assistant"), turn, strict=True)
        ]
        yield {
            "id": f"n{number}",
            "request": text,
            "tool": None,
            "kind": "none",
            "context": context,
        }


def _number(expression: str) -> str:
    """What it gives, without its unit, which has several names."""
    return str(calculate.function(expression)).partition(" ")[0]


def _printed(code: str) -> str:
    with TemporaryDirectory() as folder:
        gateway = Gateway(builtin_tools(Workspace(Path(folder))), policy=never_ask)
        call = ToolCall("", "python", json.dumps({"code": code}))
        return str(gateway.call(call).content).strip()


# -- one request ----------------------------------------------------------------------------------


def judge(model: LocalModel, row: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
    """What was right of a request, and what the model did."""
    with TemporaryDirectory() as folder:
        for name, text in row.get("files", {}).items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        tools = builtin_tools(Workspace(Path(folder)))
        wanted = {row["tool"], *row.get("alternatives", ())}
        gateway = Gateway((*tools, *LATER) if wanted & FREE_TEXT else tools, policy=never_ask)
        messages = [Message.from_json(m) for m in row.get("context", row.get("history", ()))]
        messages.append(Message("user", row["request"]))
        whole = "value" in row and row["kind"] in ANSWERED
        call, answer = _act(model, messages, gateway, whole)
        chosen = call.name if call else None
        did = f"{call.name} {call.arguments}" if call else "answered at once"
        found = {"tool": (chosen in wanted, did)}
        if row["tool"] is not None and ("arguments" in row or "value" in row):
            good = bool(call and chosen in wanted and _right(call, row, gateway))
            found["arguments"] = (good, did)
        if whole:
            said, _, _ = answer.partition("\n\ncalculate: ")  # what the kernel adds does not count
            found["answer"] = (states(said, row["value"]), f"{did} → {answer}")
        return found


def _act(
    model: LocalModel, messages: Sequence[Message], gateway: Gateway, whole: bool
) -> tuple[ToolCall | None, str]:
    """The first call, and with `whole` the answer in the end."""
    if not whole:
        stream = model.stream(messages, gateway.tools)
        first = next(iter(stream))
        stream.close()  # type: ignore[attr-defined]
        return (first if isinstance(first, ToolCall) else None), ""
    call, answer = None, ""
    for event in run(model, messages, gateway, LIMIT):
        if isinstance(event, ToolCall) and call is None:
            call = event
        if isinstance(event, Answer):
            answer = event.text
    return call, answer


def _right(call: ToolCall, row: Mapping[str, Any], gateway: Gateway) -> bool:
    given, listed = call.parsed(), row.get("arguments", [])
    if call.name in FREE_TEXT:
        given, listed = _plain(given), [_plain(arguments) for arguments in listed]
    if given in listed:
        return True
    return "value" in row and states(gateway.call(call).content, row["value"])


def _plain(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Free text without what does not matter in it."""
    words = {k: re.sub(r"[^\w\s./-]", "", str(v).casefold()).split() for k, v in arguments.items()}
    return {
        k: " ".join(w.rstrip(".") for w in text if w not in ("a", "an", "the"))
        for k, text in words.items()
    }


# -- all of them ----------------------------------------------------------------------------------


def evaluate(model: LocalModel, table: str, split: str) -> tuple[dict[str, Any], list[str]]:
    """Counts (right, all) by measure and kind, and what went wrong."""
    counts: dict[str, Any] = defaultdict(lambda: defaultdict(Counter))
    failures = []
    for row in rows(table, split):
        for what, (good, did) in judge(model, row).items():
            counts[what][row["kind"]].update(right=good, all=1)
            if not good:
                request = " ".join(row["request"].split())[:90]
                failures.append(f"{what:9} {row['kind']:16} {row['id']} {request!r}: {did[:160]}")
    return counts, sorted(failures)


def report(counts: Mapping[str, Any]) -> None:
    for what, kinds in counts.items():
        right = sum(count["right"] for count in kinds.values())
        total = sum(count["all"] for count in kinds.values())
        low, high = wilson(right, total)
        print(f"{what:10}{right}/{total} = {right / total:.1%} ({low:.1%}–{high:.1%})")
        for kind, count in sorted(kinds.items()):
            low, high = wilson(count["right"], count["all"])
            print(f"    {kind:17} {count['right']:3}/{count['all']:<3} ({low:.0%}–{high:.0%})")


def perplexity(loaded: LanguageModel) -> float:
    """Of the beginning of the reference text inside CPython."""
    text = "\n\n".join(islice(documents(None), 40))
    ids = loaded.tokenizer.encode(text)[:READ]
    *_, last = measure(Engine(loaded), [loaded.tokenizer.decode(ids)])
    return last.perplexity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help="requests, held_out, written (the first two)"
    )
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--model", default=hub.DEFAULT)
    parser.add_argument("--base", action="store_true", help="without our adapter")
    parser.add_argument("--failures", action="store_true", help="list what went wrong")
    parser.add_argument("--perplexity", action="store_true")
    given = parser.parse_args()
    base = load(hub.find(given.model))
    model = LocalModel(Engine(base)) if given.base else LocalModel.load(given.model)
    if given.perplexity:
        plain = model.plain or model.engine
        for what, weights in (
            ("as published", base),
            ("of what answers plainly", plain.language_model),
            ("of what calls tools", model.engine.language_model),
        ):
            print(f"perplexity {what}: {perplexity(weights):.3f}")
    for table in given.tables or TABLES:
        start = time.monotonic()
        counts, failures = evaluate(model, table, given.split)
        half = f", {given.split} half" if table == "requests" else ""
        print(f"\n{table}{half}, {given.model}{' as published' if given.base else ''}")
        report(counts)
        print(f"({time.monotonic() - start:.0f} s)")
        if given.failures:
            print("\n".join(failures))


if __name__ == "__main__":
    main()
