"""`data show` and `data check`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from trivium import cli
from trivium.errors import TriviumError, UsageError
from trivium.language.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    Tokenizer.train(["hello there 日本"] * 9, 280).save(folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    return str(folder)


@pytest.fixture
def data(model: str) -> Callable[..., Result]:
    def run(*arguments: str, fails: type[TriviumError] | None = None) -> Result:
        result = CliRunner().invoke(cli.main, ["data", *arguments], standalone_mode=False)
        if fails is None:
            assert result.exception is None, result.exception
        else:
            assert isinstance(result.exception, fails)
        return result

    return run


def turns(*texts: str) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(texts)
    return {"messages": [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]}


@pytest.fixture
def chats(tmp_path: Path) -> str:
    path = tmp_path / "chats.jsonl"
    records = [turns("Hi", "Yes?"), {"prompt": "a", "completion": "日本"}, turns("x" * 200, "y")]
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


def test_show_marks_what_carries_loss(data: Callable[..., Result], chats: str, model: str) -> None:
    result = data("show", chats, "-m", model, "--length", "60", "--count", "1")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("── row 1: ") and lines[0].endswith("carry loss, 2 segments")
    assert "⟦Yes?<|im_end|>⟧" in result.stdout and "⟦日本<|im_end|>⟧" in result.stdout
    assert result.stdout.count("⟦") == 2
    assert "tokens of padding" in lines[-1]
    assert "dropped: 1" in result.stderr  # nothing of the long one is left to learn


def test_show_texts(data: Callable[..., Result], model: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello there")
    (tmp_path / "b.txt").write_text("hello")
    result = data("show", str(tmp_path / "*.txt"), "-m", model, "--length", "40")
    assert "⟦hello there<|endoftext|>⟧" in result.stdout and "⟦hello<|endoftext|>⟧" in result.stdout
    embedded = data("show", "-m", model, "--count", "2", "--length", "30")
    assert "CPython" in embedded.stderr and "── row 2: 30 of 30" in embedded.stdout


def test_show_preferences(data: Callable[..., Result], model: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "Hi", "chosen": "good", "rejected": "bad"}))
    out = data("show", str(path), "-m", model).stdout
    assert out.index("reply of rank 0") < out.index("⟦good<|im_end|>⟧") < out.index("rank 1")
    assert "⟦bad<|im_end|>⟧" in out


def test_check_counts(data: Callable[..., Result], chats: str, model: str) -> None:
    facts = json.loads(data("check", chats, "-m", model, "--length", "60", "--json").stdout)
    assert facts["conversations"] == 3 and facts["broken"] == 0 and facts["longer"] == 1
    assert facts["shapes"] == {"messages": 2, "prompt": 1}
    assert facts["lengths"]["longest"] > 200 > facts["lengths"]["median"]
    tokenizer = Tokenizer.from_folder(Path(model))
    said = sum(len(tokenizer.encode(text)) + 1 for text in ("Yes?", "日本", "y"))
    assert facts["carry loss"] == said < facts["tokens"]
    text = data("check", "-m", model).stdout
    assert "documents" in text and "lengths" in text


def test_check_names_what_is_broken(data: Callable[..., Result], chats: str, model: str) -> None:
    with open(chats, "a") as file:
        file.write('\n{"messages": [{"content": "Hi"}]}\n{\n')
    result = data("check", chats, "-m", model, fails=UsageError)
    assert "2 broken records" in str(result.exception)
    assert "line 4: message 1 has no role" in result.stderr
    assert "line 5: not valid JSON" in result.stderr
    assert "conversations  3" in result.stdout
    data("show", chats, "-m", model, fails=UsageError)
    assert "broken: 2" in data("show", chats, "-m", model, "--skip-broken").stderr


def test_check_without_a_model(data: Callable[..., Result], chats: str) -> None:
    result = data("check", chats)
    assert "characters, not tokens: the model" in result.stderr
    assert "characters     210" in result.stdout and "carry loss" not in result.stdout


def test_what_cannot_be_shown(data: Callable[..., Result], chats: str, tmp_path: Path) -> None:
    Tokenizer.train(["hello"], 270).save(tmp_path / "base")
    result = data("show", chats, "-m", str(tmp_path / "base"), fails=UsageError)
    assert "has no chat template" in str(result.exception)
    result = data("show", chats, "-m", "remote:x", fails=UsageError)
    result = data("check", chats, "--format", "preferences", fails=UsageError)
    assert "no preference" in result.stderr
