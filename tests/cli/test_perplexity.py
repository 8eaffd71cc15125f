"""`perplexity`: the figures of the engine, as a table and as JSON."""

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trivium.cli import main

TEXT = "Anna met Ben in Rome. Ben met 日本.\n" * 12


def perplexity(*arguments: str, input: str = "") -> Result:
    return CliRunner().invoke(main, ["perplexity", *arguments], input=input)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_the_value_is_that_of_the_scores(tiny_folder: Path, text: Path) -> None:
    from trivium.language.engine import Engine
    from trivium.models import load

    given = ("-m", str(tiny_folder), "--precision", "float32", "--context", "64", "--json")
    result = perplexity(str(text), *given)
    assert result.exit_code == 0, result.stderr
    (found,) = json.loads(result.stdout)["results"]

    engine = Engine(load(tiny_folder, precision="float32"))
    ids = engine.tokenizer.encode(TEXT)
    nll, start = 0.0, 0
    for end in range(64, len(ids) + 32, 32):  # windows of 64, half of each new
        window, fresh = ids[max(0, end - 64) : end], ids[max(start, 1) : end]
        known = window[: len(window) - len(fresh)]
        nll -= sum(engine.score(known, [fresh])[0])
        start = end
    assert found["tokens"] == len(ids) - 1
    assert found["nll_mean"] == pytest.approx(nll / (len(ids) - 1), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["nll_mean"]))


def test_a_table_compares(tiny_folder: Path, text: Path) -> None:
    both = ("--precision", "float32", "--precision", "bfloat16")
    result = perplexity(str(text), "-m", str(tiny_folder), *both)
    assert result.exit_code == 0, result.stderr
    head, *rows = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert head[:3] == ["MODEL", "PRECISION", "PERPLEXITY"]
    assert [row[1] for row in rows[-2:]] == ["float32", "bfloat16"]
    one = perplexity(str(text), "-m", str(tiny_folder))
    assert one.stdout.startswith("model") and "bits a byte" in one.stdout


@pytest.mark.parametrize(
    "arguments, content, code, message",
    [
        (("none.txt",), None, 4, "no such file: none.txt"),
        (("text.txt",), b"", 2, "the text is empty"),
        (("text.txt",), b"\xff\xfe\xff", 2, "is not UTF-8 text"),
        (("text.txt",), b"a\0b", 2, "is binary, not text"),
        (("text.txt", "--context", "9999"), b"abc", 2, "holds 2 to 128 tokens"),
        (("text.txt", "--context", "8", "--stride", "8"), b"abc", 2, "the stride is 1 to 7"),
        (("-", "--precision", "int8", "--precision", "float32"), None, 2, "read once only"),
        (("text.txt", "-m", "remote:x"), b"abc", 2, "remote:x is at an endpoint"),
    ],
)
def test_wrong_requests(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    content: bytes | None,
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("text.txt").write_bytes(content)
    model = () if "-m" in arguments else ("-m", str(tiny_folder))
    result = perplexity(*arguments, *model)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr and result.stderr.count("\n") == 1
