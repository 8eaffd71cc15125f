"""metrics.jsonl: what a run measured, a line for a step.

{"step": 100, "loss": 3.2, "learning_rate": 0.0003, "tokens": 8192, "seconds": 0.4}
{"step": 100, "validation_loss": 3.4}            an evaluation after that step
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trivium.files import read_json_lines, write_atomic, writing

Row = dict[str, Any]


def clean(value: Any) -> Any:
    """`value` as JSON can hold it: what is no finite number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    if hasattr(value, "item"):  # of torch or numpy
        return clean(value.item()) if getattr(value, "ndim", 0) == 0 else clean(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line. The system has it at once, so that killing the process loses nothing."""
    line = json.dumps(clean(row), ensure_ascii=False)
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read(path: Path) -> list[Row]:
    """All whole lines; none, if the file is not there."""
    if not path.is_file():
        return []
    rows = read_json_lines(path, skip_broken=True)
    return [row for row in rows if isinstance(row.get("step"), int)]


def rewind(path: Path, step: int) -> None:
    """Drop what was measured at `step` or later: these steps are made again."""
    rows = read(path)
    kept = [row for row in rows if row["step"] < step]
    if path.is_file():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
        write_atomic(path, "".join(lines))


def series(rows: list[Row]) -> dict[str, list[tuple[float, float]]]:
    """name → (step, value) of every number that was measured, in the order of the steps."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if math.isfinite(value):
                found.setdefault(name, []).append((row["step"], value))
    return found


def cost(rows: list[Row]) -> dict[str, float]:
    """Steps, tokens and seconds of the training, over all times that it was taken up."""
    steps = [row for row in rows if isinstance(row.get("seconds"), int | float)]
    tokens = sum(row.get("tokens") or 0 for row in steps)
    seconds = sum(row["seconds"] for row in steps)
    return {"steps": len(steps), "tokens": tokens, "seconds": seconds}
