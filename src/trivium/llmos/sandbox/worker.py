"""A Python session inside the sandbox: runs one cell after another in the same namespace.

It speaks over two pipes in frames: four bytes of length, big-endian, then a JSON object.

    request  {"token", "code", "cell"}
    reply    {"token", "value", "error", "plots"}

`value` is the repr of the cell's last expression, `error` a short traceback that shows the lines of
the user's code only, `plots` the PNG files made of figures left open. What a cell prints goes to
standard output and error, which are one pipe. The code that runs here can do to this process
whatever it likes, forge replies included: the parent believes nothing it says.
"""

import ast
import builtins
import contextlib
import io
import json
import linecache
import os
import signal
import sys
import types
import warnings
from typing import Any

VALUE_CHARACTERS = 20_000
ERROR_CHARACTERS = 4_000
FRAMES = 8


def read_frame(file: Any) -> bytes:
    """One frame from an unbuffered binary file; b"" at its end."""
    header = _read_exactly(file, 4)
    return _read_exactly(file, int.from_bytes(header, "big"))


def _read_exactly(file: Any, size: int) -> bytes:
    parts = []
    while size:
        part = file.read(size)
        if not part:
            return b""
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def frame(record: dict[str, Any]) -> bytes:
    payload = json.dumps(record).encode()
    return len(payload).to_bytes(4, "big") + payload


def serve(requests: int, replies: int, site_folders: list[str], plots_folder: str) -> None:
    """Answer requests until the pipe ends. Runs confined."""
    sys.dont_write_bytecode = True
    # Without `site`: the .pth files in these folders name others, which cannot be read here.
    sys.path += site_folders
    # One buffer under both streams keeps what is printed in order.
    output = io.BufferedWriter(io.FileIO(1, "w", closefd=False))
    streams = [
        io.TextIOWrapper(output, "utf-8", "backslashreplace", line_buffering=True) for _ in range(2)
    ]
    # As Python itself has them: errors, not sudden ends.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = [""]
    sys.path.insert(0, os.getcwd())
    with os.fdopen(requests, "rb", buffering=0) as file:
        while request := read_frame(file):
            job = json.loads(request)
            sys.stdout, sys.stderr = streams
            value, error = _run(job["code"], f"<cell {job['cell']}>", module.__dict__)
            plots: list[str] = []
            try:
                plots = _save_figures(plots_folder)
            except Exception as failure:
                error = error or f"the plot could not be saved: {failure}"
            for stream in streams:
                with contextlib.suppress(Exception):
                    stream.flush()
            record = {"token": job["token"], "value": value, "error": error, "plots": plots}
            payload = memoryview(frame(record))
            while payload:
                payload = payload[os.write(replies, payload) :]


def _run(code: str, name: str, namespace: dict[str, Any]) -> tuple[str, str]:
    """Run a cell. Returns the repr of its last expression, and its error or ""."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    namespace.setdefault("__builtins__", builtins)
    try:
        tree = ast.parse(code, name)
        last: ast.Expression | None = None
        if tree.body and isinstance(final := tree.body[-1], ast.Expr):
            del tree.body[-1]
            last = ast.Expression(final.value)
        exec(compile(tree, name, "exec"), namespace)
        if last is None:
            return "", ""
        value = eval(compile(last, name, "eval"), namespace)
        return ("" if value is None else _shown(value)), ""
    except BaseException as error:
        return "", _explain(error)


def _shown(value: Any) -> str:
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, (pandas.DataFrame, pandas.Series)):
        with pandas.option_context("display.width", 120, "display.max_columns", 20):
            return repr(value)[:VALUE_CHARACTERS]
    return repr(value)[:VALUE_CHARACTERS]


def _explain(error: BaseException) -> str:
    """A traceback of the cells' own lines; those of libraries would tell the reader nothing."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        name, number = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        if name.startswith("<cell "):
            function = trace.tb_frame.f_code.co_name
            where = "" if function == "<module>" else f" in {function}"
            lines.append(f"  line {number}{where}: {linecache.getline(name, number).strip()}")
        trace = trace.tb_next
    if len(lines) > FRAMES:
        middle = f"  ... {len(lines) - FRAMES} more"
        lines = [*lines[: FRAMES // 2], middle, *lines[-FRAMES // 2 :]]
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be shown)"
    if isinstance(error, SyntaxError) and (error.filename or "").startswith("<cell "):
        source = (error.text or "").rstrip("\n")
        caret = " " * max(0, (error.offset or 1) - 1) + "^"
        lines.append(
            f"  line {error.lineno}: {source}\n  {' ' * len(f'line {error.lineno}: ')}{caret}"
        )
        message = error.msg
    kind = type(error).__name__
    lines.append(f"{kind}: {message[:ERROR_CHARACTERS]}" if message else kind)
    return "\n".join(lines)


def _save_figures(folder: str) -> list[str]:
    """Save each open figure as the next free plot-N.png, then close all.

    A figure that is not stale was drawn as it is now, which is to say that the cell saved it.
    """
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return []
    try:
        figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
        return [_save(figure, folder) for figure in figures if figure.stale]
    finally:
        pyplot.close("all")


def _save(figure: Any, folder: str) -> str:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100, bbox_inches="tight")
    index = 1
    while True:
        name = f"plot-{index}.png"
        try:
            with open(os.path.join(folder, name), "xb") as file:
                file.write(picture.getbuffer())
            return name
        except FileExistsError:
            index += 1
