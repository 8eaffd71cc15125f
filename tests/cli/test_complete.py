"""`complete`: what is wrong is said before a model is loaded."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trivium.cli import main


def complete(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["complete", "-m", "./none.gguf", *arguments], input="")


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ((), 2, "the request is empty"),
        (("hi",), 4, "no such file: none.gguf"),
        (("hi", "-m", "remote:one"), 2, "remote:one is at an endpoint"),
        (("hi", "--regex", "a", "--choice", "b"), 2, "--regex and --choice cannot both hold"),
        (("hi", "--regex", "("), 2, "invalid regular expression"),
        (("hi", "--regex", "", "--choice", "b"), 2, "--regex and --choice cannot both hold"),
        (("hi", "--choice", ""), 2, "not empty"),
        (("hi", "--schema", "none.json"), 4, "no such file: none.json"),
        (("hi", "--schema", "."), 2, "cannot read .: Is a directory"),
        (("hi", "--temperature", "nan"), 2, "temperature must be a number"),
    ],
)
def test_wrong_requests(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = complete(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"{ nope", b"\xff\xfe", b'{"items":' * 100_000])
def test_a_file_that_is_no_schema(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(content)
    result = complete("hi", "--schema", str(path))
    assert result.exit_code == 2
    assert str(path) in result.stderr and result.stderr.count("\n") == 1
    assert "not valid JSON" in result.stderr or "not UTF-8 text" in result.stderr


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model.gguf"
    model.touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    result = complete("hi", "-m", str(model))
    assert result.exit_code == 2
    assert result.stderr == (
        "trivium: a model on this machine needs torch: pip install 'trivium[local]'\n"
    )
