"""Which tool, with which arguments: the default model on a table of written requests.

    python bench/requests.py [--split test] [--model NAME] [--failures]

The table, tests/llmos/requests.jsonl, was written by somebody who did not see the examples that the
model is shown. Its `dev` half may be looked at while the examples are improved; report `test`.
A tool is right when the table names it or allows it as an alternative; arguments are right when the
table lists them, or when running them gives the value that it states. Intervals: Wilson, 95 %.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trivium import hub
from trivium.llmos.builtin import builtin_tools
from trivium.llmos.gateway import Gateway, never_ask
from trivium.llmos.local import LocalModel
from trivium.llmos.messages import Message, ToolCall
from trivium.llmos.workspace import Workspace

TABLE = Path(__file__).parent.parent / "tests/llmos/requests.jsonl"


def rows(split: str) -> Iterator[dict[str, Any]]:
    for line in TABLE.read_text().splitlines():
        row = json.loads(line)
        if row["split"] == split:
            yield row


def first_call(model: LocalModel, gateway: Gateway, row: Mapping[str, Any]) -> ToolCall | None:
    messages = [Message.from_json(record) for record in row.get("history", [])]
    messages.append(Message("user", row["request"]))
    stream = model.stream(messages, gateway.tools)
    first = next(event for event in stream)
    stream.close()  # type: ignore[attr-defined]
    return first if isinstance(first, ToolCall) else None


def says(result: str, value: str) -> bool:
    """Whether a tool's text gives the stated value; numbers within 1e-6."""
    if value in result:
        return True
    try:
        wanted = float(value)
    except ValueError:
        return False
    for word in result.replace(",", "").split():
        try:
            if math.isclose(float(word), wanted, rel_tol=1e-6):
                return True
        except ValueError:
            continue
    return False


def right_arguments(call: ToolCall, row: Mapping[str, Any], gateway: Gateway) -> bool:
    if call.parsed() in row.get("arguments", []):
        return True
    return "value" in row and says(gateway.call(call).content, row["value"])


def evaluate(model: LocalModel, split: str) -> dict[str, Any]:
    """Counts of right tools and right arguments, and what went wrong."""
    tools, arguments, failures = Counter[str](), Counter[str](), []
    with TemporaryDirectory() as folder:
        gateway = Gateway(builtin_tools(Workspace(Path(folder))), policy=never_ask)
        for row in rows(split):
            call = first_call(model, gateway, row)
            chosen = call.name if call else None
            good_tool = chosen == row["tool"] or chosen in row.get("alternatives", [])
            kind = row["tool"] or "none"
            tools[f"{kind} all"] += 1
            tools[kind] += good_tool
            failure = None if good_tool else f"chose {chosen or 'none'}"
            if row["tool"] is not None and ("arguments" in row or "value" in row):
                good = bool(call and good_tool and right_arguments(call, row, gateway))
                arguments[f"{kind} all"] += 1
                arguments[kind] += good
                if good_tool and not good and call:
                    failure = f"{call.name} {call.arguments}"
            if failure:
                failures.append((row["id"], kind, row["request"], failure))
    return {"tools": tools, "arguments": arguments, "failures": failures}


def wilson(good: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share, spread = good / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    reach = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return middle - reach, middle + reach


def report(counts: Mapping[str, int], title: str) -> None:
    kinds: Sequence[str] = [key[:-4] for key in counts if key.endswith(" all")]
    good, total = sum(counts[k] for k in kinds), sum(counts[f"{k} all"] for k in kinds)
    low, high = wilson(good, total)
    print(f"{title}: {good}/{total} = {good / total:.0%} ({low:.0%}–{high:.0%})")
    print("  " + ", ".join(f"{k} {counts[k]}/{counts[f'{k} all']}" for k in sorted(kinds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--model", default=hub.DEFAULT)
    parser.add_argument("--failures", action="store_true", help="list what went wrong")
    given = parser.parse_args()
    result = evaluate(LocalModel.load(given.model), given.split)
    print(f"{given.model} on the {given.split} half")
    report(result["tools"], "right tool, or rightly none")
    report(result["arguments"], "right tool and right arguments")
    if given.failures:
        for id, kind, request, what in result["failures"]:
            print(f"  {id} {kind:12} {' '.join(request.split())[:70]!r}: {what[:100]}")


if __name__ == "__main__":
    main()
