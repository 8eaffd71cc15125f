"""A tool is a typed function with a docstring; its JSON schema is read off the signature.

    @tool(effect="read")
    def read_file(path: str) -> str:
        \"\"\"Read a text file of the workspace.

        path: the file, relative to the workspace
        \"\"\"

The name `read_file` is then a `Tool`. A docstring line `argument: text`, with its indented
continuation lines, describes that argument; the rest describes the tool. Hints may be str, int,
float, bool, list, list[T], dict, dict[str, T], Literal[...], and unions of these with None.

`effect` says what a call can do to the world, which is what the gateway decides on:

    none     computes from its arguments alone
    read     returns text that somebody else may have written
    write    changes files of the workspace
    execute  runs code in the sandbox
"""

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, overload

Effect = Literal["none", "read", "write", "execute"]


class ToolError(Exception):
    """A mistake of the model in calling a tool: the message goes back to it, to correct itself by.

    `sources` name who wrote parts of the message, where it quotes a file or a file's name.
    """

    def __init__(self, message: str, sources: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.sources = sources


@dataclass(frozen=True)
class ToolOutput:
    """Text for the model, the files the call created or changed, and who wrote the text."""

    text: str
    files: tuple[str, ...] = ()
    sources: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Tool:
    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., str | ToolOutput]
    effect: Effect = "none"

    def to_json(self) -> dict[str, Any]:
        """The tool as OpenAI's chat API describes it."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise a ToolError that says what to change when `arguments` do not fit the schema."""
        from jsonschema import Draft202012Validator  # late: it costs 0.1 s of start-up
        from jsonschema.validators import extend

        # JSON Schema lets 3.0 pass as an integer; the function behind it was promised an int.
        types_of_python = Draft202012Validator.TYPE_CHECKER.redefine(
            "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
        )
        validator = extend(Draft202012Validator, type_checker=types_of_python)(self.parameters)
        known = self.parameters["properties"]
        unknown = [name for name in arguments if name not in known]
        missing = [name for name in self.parameters["required"] if name not in arguments]
        wrong = [] if unknown or missing else list(validator.iter_errors(arguments))
        problems = (
            [f"unknown argument {_quoted(name)}" for name in unknown]
            + [f"argument {_quoted(name)} is missing" for name in missing]
            + [_problem(error) for error in wrong]
        )
        if problems:
            raise ToolError(f"{'; '.join(problems[:4])}. Usage: {self._usage()}")

    def _usage(self) -> str:
        required = self.parameters["required"]
        arguments = (
            f"{name}: {_kind(schema)}"
            + ("" if name in required else f" = {_quoted(schema.get('default'))}")
            for name, schema in self.parameters["properties"].items()
        )
        return f"{self.name}({', '.join(arguments)})"


def _quoted(value: object) -> str:
    """`value` as the model wrote it, short enough for one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}…{text[-1]}"


def _kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(repr(choice) for choice in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(_kind(choice) for choice in schema["anyOf"])
    if schema["type"] == "array" and "items" in schema:
        return f"array of {_kind(schema['items'])}"
    return str(schema["type"])


def _problem(error: Any) -> str:
    """One `jsonschema.ValidationError` as a model can act on it."""
    where = "".join(f"[{part!r}]" for part in list(error.absolute_path)[1:])
    return (
        f"argument {_quoted(error.absolute_path[0])}{where} must be {_kind(error.schema)}, "
        f"not {_quoted(error.instance)}"
    )


_SIMPLE: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    list: {"type": "array"},
    dict: {"type": "object"},
    type(None): {"type": "null"},
}


def _schema(hint: Any) -> dict[str, Any]:
    """The JSON schema of a type hint. Raises TypeError for a hint JSON has no word for."""
    if isinstance(hint, type) and hint in _SIMPLE:
        return dict(_SIMPLE[hint])
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        kinds = {type(choice) for choice in inner}
        if not kinds <= {str, int, bool}:
            raise TypeError(f"unsupported type hint {hint}: use text, whole numbers, true or false")
        enum = {"enum": list(inner)}
        return {**_SIMPLE[kinds.pop()], **enum} if len(kinds) == 1 else enum
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(choice) for choice in inner]}
    if origin is list:
        return {"type": "array", "items": _schema(inner[0])}
    if origin is dict and inner[0] is str:
        return {"type": "object", "additionalProperties": _schema(inner[1])}
    raise TypeError(
        f"unsupported type hint {hint}: use str, int, float, bool, list, dict, Literal or a union"
    )


def _parameters(function: Callable[..., Any], descriptions: Mapping[str, str]) -> dict[str, Any]:
    hints = typing.get_type_hints(function)
    properties: dict[str, dict[str, Any]] = {}
    required = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"argument {str(parameter)!r} cannot be given by name")
        if name not in hints:
            raise TypeError(f"argument {name!r} has no type hint")
        properties[name] = _schema(hints[name])
        if name in descriptions:
            properties[name]["description"] = descriptions[name]
        if parameter.default is parameter.empty:
            required.append(name)
        else:
            properties[name]["default"] = parameter.default
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _split_docstring(text: str, names: typing.Container[str]) -> tuple[str, dict[str, str]]:
    """Part a docstring into the tool's description and the descriptions of its arguments."""
    body: list[str] = []
    arguments: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in inspect.cleandoc(text).splitlines():
        match = re.match(r"(\w+): +(.+)", line)
        if match and match[1] in names:
            current = arguments[match[1]] = [match[2].strip()]
        elif current is not None and line.startswith(" "):
            current.append(line.strip())
        else:
            current = None
            body.append(line)
    return "\n".join(body).strip(), {name: " ".join(lines) for name, lines in arguments.items()}


@overload
def tool(function: Callable[..., str | ToolOutput], /) -> Tool: ...
@overload
def tool(
    *, effect: Effect = "none", name: str | None = None
) -> Callable[[Callable[..., str | ToolOutput]], Tool]: ...


def tool(
    function: Callable[..., str | ToolOutput] | None = None,
    /,
    *,
    effect: Effect = "none",
    name: str | None = None,
) -> Tool | Callable[[Callable[..., str | ToolOutput]], Tool]:
    """Make a Tool of a typed function with a docstring; `@tool` and `@tool(effect=...)` both work.

    Raises TypeError, naming the function, when a hint or the docstring is missing or unusable.
    """
    if function is None:
        return lambda given: _tool(given, effect, name or given.__name__)
    return _tool(function, effect, name or function.__name__)


def _tool(function: Callable[..., str | ToolOutput], effect: Effect, name: str) -> Tool:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise TypeError(f"tool {name!r}: a name has up to 64 letters, digits, '_' and '-'")
    names = inspect.signature(function).parameters
    description, descriptions = _split_docstring(function.__doc__ or "", names)
    if not description:
        raise TypeError(f"tool {name}: the docstring is missing, and it is what the model reads")
    try:
        parameters = _parameters(function, descriptions)
    except TypeError as error:
        raise TypeError(f"tool {name}: {error}") from error
    return Tool(name, description, parameters, function, effect)
