import json
import subprocess
import sys
from typing import Any, Literal, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.llmos.tools import Tool, ToolError, tool


@tool(effect="read")
def lookup(
    key: str,
    count: int = 3,
    scale: float = 1.5,
    exact: bool = False,
    tags: list[str] | None = None,
    mode: Literal["fast", "slow"] = "fast",
    extra: dict[str, list[int]] = {},  # noqa: B006 - a default of the schema, never changed
) -> str:
    """Look a key up.

    Note: the table is small.
    key: what to look for,
      over two lines
    mode: how

    Keys are words.
    """
    return key


def test_the_decorator_reads_signature_and_docstring() -> None:
    assert isinstance(lookup, Tool)
    assert (lookup.name, lookup.effect) == ("lookup", "read")
    assert lookup.description == "Look a key up.\n\nNote: the table is small.\n\nKeys are words."
    assert lookup.parameters == {
        "type": "object",
        "properties": {
            "key": {"type": "string", "description": "what to look for, over two lines"},
            "count": {"type": "integer", "default": 3},
            "scale": {"type": "number", "default": 1.5},
            "exact": {"type": "boolean", "default": False},
            "tags": {
                "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}],
                "default": None,
            },
            "mode": {
                "type": "string",
                "enum": ["fast", "slow"],
                "default": "fast",
                "description": "how",
            },
            "extra": {
                "type": "object",
                "additionalProperties": {"type": "array", "items": {"type": "integer"}},
                "default": {},
            },
        },
        "required": ["key"],
        "additionalProperties": False,
    }
    json.dumps(lookup.to_json())


def test_plain_decorator_explicit_name_and_bound_method() -> None:
    class Shelf:
        def find(self, title: Optional[str]) -> str:  # noqa: UP045 - both spellings must work
            """Find a book."""
            return title or ""

    plain = tool(Shelf().find)
    assert (plain.name, plain.effect, plain.parameters["required"]) == ("find", "none", ["title"])
    assert tool(name="book-1")(Shelf().find).name == "book-1"


class Custom: ...


def bare(x) -> str:  # type: ignore[no-untyped-def]
    """Doc."""
    return ""


def many(*words: str) -> str:
    """Doc."""
    return ""


def positional(x: str, /) -> str:
    """Doc."""
    return ""


def no_docstring(x: str) -> str:
    return ""


def custom(x: Custom) -> str:
    """Doc."""
    return ""


def anything(x: Any) -> str:
    """Doc."""
    return ""


def numbered(x: dict[int, str]) -> str:
    """Doc."""
    return ""


def fraction(x: Literal[None]) -> str:
    """Doc."""
    return ""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (bare, "tool bare: argument 'x' has no type hint"),
        (many, "tool many: argument '*words: str' cannot be given by name"),
        (positional, "tool positional: argument 'x: str' cannot be given by name"),
        (no_docstring, "tool no_docstring: the docstring is missing"),
        (custom, "tool custom: unsupported type hint .*Custom"),
        (anything, "tool anything: unsupported type hint typing.Any"),
        (numbered, r"tool numbered: unsupported type hint dict\[int, str\]"),
        (fraction, "tool fraction: unsupported type hint"),
        (lambda: "", "tool '<lambda>': a name has"),
    ],
)
def test_what_cannot_be_a_tool_is_a_typed_error(function: Any, message: str) -> None:
    message = message.replace("*w", r"\*w")
    with pytest.raises(TypeError, match=message):
        tool(function)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "argument 'key' is missing"),
        ({"key": "a", "limit": 1}, "unknown argument 'limit'"),
        ({"Key": "a"}, "unknown argument 'Key'; argument 'key' is missing"),
        ({"key": 3}, "argument 'key' must be string, not 3"),
        ({"key": None}, "argument 'key' must be string, not None"),
        ({"key": "a", "count": "3"}, "argument 'count' must be integer, not '3'"),
        ({"key": "a", "count": True}, "argument 'count' must be integer, not True"),
        ({"key": "a", "count": 3.0}, "argument 'count' must be integer, not 3.0"),
        ({"key": "a", "exact": 1}, "argument 'exact' must be boolean, not 1"),
        ({"key": "a", "mode": "medium"}, "argument 'mode' must be 'fast' | 'slow', not 'medium'"),
        ({"key": "a", "tags": [1]}, "argument 'tags' must be array of string | null, not [1]"),
        ({"key": "a", "extra": {"b": [1, "x"]}}, "argument 'extra'['b'][1] must be integer"),
    ],
)
def test_arguments_that_do_not_fit_say_what_to_change(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ToolError) as caught:
        lookup.check(arguments)
    assert str(caught.value).startswith(message)
    assert "Usage: lookup(key: string, count: integer = 3" in str(caught.value)


def test_a_long_wrong_value_is_shortened() -> None:
    with pytest.raises(ToolError) as caught:
        lookup.check({"key": ["x" * 100_000]})
    assert len(str(caught.value)) < 500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)  # the first example imports jsonschema
@given(st.dictionaries(st.sampled_from(["key", "count", "tags", "other"]), json_values))
def test_arguments_that_pass_fit_the_hints(arguments: dict[str, Any]) -> None:
    try:
        lookup.check(arguments)
    except ToolError as error:
        assert "\n" not in str(error).replace("\\n", "")
        return
    assert set(arguments) <= {"key", "count", "tags"}
    assert type(arguments["key"]) is str
    assert type(arguments.get("count", 3)) is int
    tags = arguments.get("tags")
    assert tags is None or all(type(entry) is str for entry in tags)


def test_importing_the_tools_loads_neither_jsonschema_nor_torch() -> None:
    code = (
        "import sys, trivium.llmos.tools, trivium.llmos.gateway, trivium.llmos.file_tools, "
        "trivium.llmos.calculator; "
        "print([m for m in ('torch', 'numpy', 'jsonschema') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
