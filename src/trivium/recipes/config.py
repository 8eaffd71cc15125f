"""A recipe's settings: a frozen dataclass, filled from `key=value` words with typed errors.

    @dataclass(frozen=True)
    class Config(RecipeConfig):
        depth: int = 4      # layers; the width follows

    fill(Config, ["depth=6", "data=books/"])

A field is an int, float, bool, str, Path, Literal, tuple of these, or one of them or None. Numbers
may be written 1e-3, 10k, 2.5M or 1_000. The comment behind a field is its help; it is read from
the source, so that nothing has to be imported to show it.
"""

import ast
import difflib
import io
import math
import re
import tokenize
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from trivium.errors import UsageError


@dataclass(frozen=True)
class RecipeConfig:
    """What every recipe has."""

    out: str = ""  # the run's folder; "": runs/NAME
    seed: int = 0  # of the weights, of the order of the data and of samples
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    dry_run: bool = False  # estimate memory and time; nothing is trained or written
    fresh: bool = False  # set the run that is in the folder aside (to NAME.old-1) and begin anew


# What may differ when a run goes on: where it lies and runs, and how it is asked for.
PASSING = frozenset(f.name for f in fields(RecipeConfig)) - {"seed"}

Config = TypeVar("Config")

WORDS = {
    **dict.fromkeys(("yes", "true", "on", "1"), True),
    **dict.fromkeys(("no", "false", "off", "0"), False),
}
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
NUMBER = re.compile(r"([+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:e[+-]?\d+)?)([kmgb]?)", re.I)
NAMES = {int: "a whole number", float: "a number", bool: "yes or no", str: "a text", Path: "a path"}


def fill(config_class: type[Config], assignments: Iterable[str]) -> Config:
    """The config whose fields are set by `key=value` words; the last word for a key counts.

    Raises UsageError that names the key, the value and what would be right.
    """
    kinds = typing.get_type_hints(config_class)
    known = {f.name: f for f in fields(config_class)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise UsageError(f"expected key=value, not {assignment!r}{_meant(key, known, '=…')}")
        if key not in known:
            hint = _meant(key, known) or f"; it has {', '.join(known)}"
            raise UsageError(f"the recipe has no setting {key!r}{hint}")
        values[key] = _parse(kinds[key], text, f"{key}={text}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"the setting {name} has no default: give {name}=…")
    try:
        return config_class(**values)
    except ValueError as error:  # of the recipe's own __post_init__
        raise UsageError(str(error)) from None


def shared(kind: type[Config], config: Any, **others: Any) -> Config:
    """A `kind` whose fields are those that `config` has by the same name, and `others`.

    shared(TrainConfig, config, compile=False)
    """
    names = {f.name for f in fields(kind)} & {f.name for f in fields(config)}  # type: ignore[arg-type]
    return kind(**{name: getattr(config, name) for name in names} | others)


def _meant(key: str, known: Iterable[str], end: str = "") -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {close[0]}{end}?" if close else ""


def _parse(kind: Any, text: str, said: str) -> Any:
    """`text` as a value of the type `kind`; `said` is the whole word, for the error."""
    origin = get_origin(kind)
    if origin is Literal:
        return _choose(get_args(kind), text, said)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        if len(options) < len(get_args(kind)) and text.strip().lower() == "none":
            return None
        return _first(options, text, said)
    if origin is tuple:
        return _parse_tuple(get_args(kind), text, said)
    if kind is str:
        return text
    if kind is Path:
        return Path(text).expanduser()
    if kind is bool:
        if text.strip().lower() not in WORDS:
            raise UsageError(f"{said}: expected {NAMES[bool]}")
        return WORDS[text.strip().lower()]
    if kind in (int, float):
        return _number(kind, text, said)
    raise UsageError(f"{said}: a setting of type {kind} cannot be given as a word")


def _number(kind: type, text: str, said: str) -> Any:
    match = NUMBER.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{said}: expected {NAMES[kind]}")
    try:
        exact = int(match[1]) if kind is int else float(match[1])
    except ValueError:
        exact = float(match[1].replace("_", ""))
    value = exact * UNITS[match[2].lower()]
    if kind is float:
        value = float(value)
    if not math.isfinite(value) or (kind is int and value != int(value)):
        raise UsageError(f"{said}: expected {NAMES[kind]}")
    return kind(value)


def _choose(choices: Sequence[Any], text: str, said: str) -> Any:
    names = {str(choice): choice for choice in choices}
    if text.strip() not in names:
        raise UsageError(f"{said}: expected one of {', '.join(names)}{_meant(text.strip(), names)}")
    return names[text.strip()]


def _first(options: Sequence[Any], text: str, said: str) -> Any:
    """The first type that takes the text."""
    for option in options[:-1]:
        try:
            return _parse(option, text, said)
        except UsageError:
            continue
    return _parse(options[-1], text, said)


def _parse_tuple(kinds: Sequence[Any], text: str, said: str) -> tuple[Any, ...]:
    parts = [part for part in text.strip().strip("()").split(",") if part.strip()]
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = [kinds[0]] * len(parts)
    elif len(parts) != len(kinds):
        raise UsageError(f"{said}: expected {len(kinds)} values with commas between them")
    return tuple(_parse(kind, part.strip(), said) for kind, part in zip(kinds, parts, strict=True))


# -- what a config has, read from its source ----------------------------------------------------


class Field(NamedTuple):
    """A setting as it is shown to a person."""

    name: str
    kind: str
    default: str  # as in the source; "" where there is none
    comment: str


def fields_in(source: Path, name: str = "Config") -> list[Field]:
    """The fields of a class in a file of Python, and then those that it inherits.

    Nothing is run: the file is only parsed. Bases are followed within the file and into Trivium.
    """
    text = source.read_text(encoding="utf-8")
    tree = ast.parse(text)
    found = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if found is None:
        return []
    inherited: dict[str, Field] = {}
    for base in found.bases:
        if isinstance(base, ast.Name) and (home := _home(base.id, tree, source)):
            inherited |= {field.name: field for field in fields_in(*home)}
    comments = _comments(text)
    own: dict[str, Field] = {}
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            comment = comments.get(node.end_lineno or 0) or comments.get(node.lineno, "")
            default = ast.unparse(node.value) if node.value else ""
            own[node.target.id] = Field(node.target.id, _kind(node), default, comment)
    return [*own.values(), *(field for name, field in inherited.items() if name not in own)]


def _home(name: str, tree: ast.Module, source: Path) -> tuple[Path, str] | None:
    """The file and name of a class that is named in `tree`."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return source, name
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trivium."):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    spec = find_spec(node.module or "")
                    return (Path(spec.origin), alias.name) if spec and spec.origin else None
    return None


def _comments(text: str) -> dict[int, str]:
    """Line number → the comment that ends the line."""
    return {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }


def _kind(node: ast.AnnAssign) -> str:
    """The annotation for people: a | b for Literal["a", "b"]."""
    parts = node.annotation
    if isinstance(parts, ast.Subscript) and ast.unparse(parts.value).endswith("Literal"):
        inner = parts.slice.elts if isinstance(parts.slice, ast.Tuple) else [parts.slice]
        return " | ".join(str(ast.literal_eval(choice)) for choice in inner)
    return ast.unparse(parts)
