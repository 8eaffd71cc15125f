"""Jinja for strangers' templates: the environment that transformers gives them, with bounds.

Jinja's sandbox keeps a template from Python's internals. It does not keep it from running for ever
or filling the memory, so here every turn of a loop and every call of a macro is counted, the
operators that build big values are bounded, and so is the output.
"""

import json
import re
import threading
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from trivium.errors import TriviumError, UsageError

try:
    import jinja2
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace
    from jinja2.visitor import NodeTransformer
except ModuleNotFoundError as error:
    raise TriviumError('chat templates need more packages: pip install "trivium[local]"') from error

MAX_STEPS = 500_000  # turns of loops and calls of macros
MAX_TEXT = 32_000_000  # characters of the output, or of a value built by +, ~ or *


class Program:
    """A compiled template. Raises UsageError, in one line, for whatever goes wrong in it."""

    def __init__(self, source: str) -> None:
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            place = f"line {error.lineno}"
            raise UsageError(f"broken chat template, {place}: {_line(error.message)}") from error
        except RecursionError as error:
            raise UsageError("broken chat template: nested too deeply") from error

    def render(
        self,
        variables: Mapping[str, Any],
        kept: Iterable[str] = (),
        marks: tuple[str, str] = ("", ""),
    ) -> str:
        """The text. `kept` are characters that are never escaped, not even by tojson; `marks` are
        put around each {% generation %}."""
        run = self._environment.run
        run.steps, run.kept, run.marks = 0, tuple(kept), marks
        pieces, size = [], 0
        try:
            for piece in self._template.generate(**variables):
                size += len(piece)
                _bound(size)
                pieces.append(piece)
        except _Refusal as error:
            raise UsageError(f"the chat template refuses the messages: {_line(error)}") from error
        except (MemoryError, RecursionError) as error:
            raise UsageError("the chat template does not end within its bounds") from error
        except Exception as error:  # a template can raise whatever Python can
            raise UsageError(f"the chat template failed: {_line(error)}") from error
        return "".join(pieces)


class _Refusal(jinja2.TemplateError):
    """The template called raise_exception."""


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300]


def _bound(size: float) -> None:
    if size > MAX_TEXT:
        raise SecurityError(f"it makes more than {MAX_TEXT:,} characters")


class _GenerationTag(Extension):
    """{% generation %} marks the assistant's turns for training: puts `marks` around them."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks = [
            nodes.Call(nodes.EnvironmentAttribute("mark"), [nodes.Const(i)], [], None, None)
            for i in (0, 1)
        ]
        begin, end = (nodes.Output([mark]).set_lineno(line) for mark in marks)
        return nodes.Scope([begin, *body, end]).set_lineno(line)


class _Counting(NodeTransformer):
    """Puts a call of `tick` into every loop and macro, and bounds `~`."""

    def _counted(self, node: Any) -> Any:
        self.generic_visit(node)
        tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
        return node

    visit_For = visit_Macro = visit_CallBlock = _counted

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        joined = nodes.EnvironmentAttribute("joined")
        return nodes.Call(joined, node.nodes, [], None, None).set_lineno(node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        self.run = threading.local()
        del self.globals["lipsum"], self.filters["center"]  # they make text of any size
        self.filters["tojson"] = self.tojson
        self.globals["namespace"] = _PublicNamespace
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        return tree

    def tick(self) -> None:
        self.run.steps += 1
        if self.run.steps > MAX_STEPS:
            raise SecurityError(f"it takes more than {MAX_STEPS:,} steps")

    def tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Plain JSON, where Jinja's own filter would escape < and > for HTML."""
        text = json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )
        for char in self.run.kept if ensure_ascii else ():
            text = text.replace(f"\\u{ord(char):04x}", char)
        return text

    def mark(self, which: int) -> str:
        return str(self.run.marks[which])

    def joined(self, *values: Any) -> str:
        texts = [str(value) for value in values]
        _bound(sum(map(len, texts)))
        return "".join(texts)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        for value in args:  # widths, as of ljust
            _bound(value if isinstance(value, int) else 0)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _bound(_width(value.__self__))
        return wrapped

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            _bound(_size(left) + _size(right))
        elif operator == "*" and isinstance(right, int):
            _bound(_size(left) * right)
        elif operator == "*" and isinstance(left, int):
            _bound(left * _size(right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _bound(left.bit_length() * right)
        elif operator == "%" and isinstance(left, str):
            _bound(_width(left))
        return super().call_binop(context, operator, left, right)


class _PublicNamespace(Namespace):
    """Jinja's namespace() without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # so that namespace(self=…) works, as in Jinja
        Namespace.__init__(self)
        for name, value in dict(*rest, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"it stores the private name {name!r}")
        super().__setitem__(name, value)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _width(form: str) -> int:
    """The greatest number in a format, which may be a width."""
    return max((int(number[:12]) for number in re.findall(r"\d+", form)), default=0)


def _raise_exception(message: str) -> None:
    raise _Refusal(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
