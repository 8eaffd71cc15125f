"""A task of real text that is there wherever Python is: from which package is a docstring?

The sources of the standard library are parsed, not imported.
"""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trivium.errors import UsageError

PACKAGES = (
    "asyncio",
    "email",
    "http",
    "idlelib",
    "importlib",
    "multiprocessing",
    "tkinter",
    "unittest",
)
LEAST, MOST = 40, 600  # characters


class Labelled(NamedTuple):
    text: str
    label: str


def docstrings(packages: tuple[str, ...] = PACKAGES) -> list[Labelled]:
    """Those of modules, classes and functions, each text once, in the order of the files."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, str] = {}
    for package in packages:
        for file in sorted((library / package).rglob("*.py")):
            if not any(part.startswith("test") for part in file.relative_to(library).parts):
                for text in _of_file(file):
                    found.setdefault(text, package)
    if len(set(found.values())) < 2:
        raise UsageError(
            "this Python comes without the sources of its library, the text that is read when none "
            "is given: name a JSONL file with text and label"
        )
    return [Labelled(text, label) for text, label in found.items()]


def _of_file(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = " ".join((ast.get_docstring(node) or "").split())
            if len(text) >= LEAST:
                yield text[:MOST]
