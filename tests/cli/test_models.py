"""`models`, `pull`, `show`, `rm` with a small fake catalogue."""

import hashlib
import json
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from trivium import cli, hub, package_index
from trivium.cli import console
from trivium.errors import TriviumError

NAME = "tiny-chat"


def gguf(**metadata: str | int | list[str]) -> bytes:
    """A GGUF v3 file with one 2 × 32 tensor of F32."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text.encode())) + text.encode()

    def value(item: str | int | list[str]) -> bytes:
        if isinstance(item, str):
            return struct.pack("<I", 8) + string(item)
        if isinstance(item, int):
            return struct.pack("<II", 4, item)
        return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(string, item))

    pairs = b"".join(string(key.replace("__", ".")) + value(v) for key, v in metadata.items())
    tensor = string("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 2, 0, 0)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(metadata)) + pairs + tensor
    return header + bytes(-len(header) % 32) + bytes(2 * 32 * 4)


MODEL = gguf(
    general__architecture="llama",
    general__license="mit",
    llama__context_length=8192,
    llama__block_count=30,
    llama__embedding_length=32,
    tokenizer__ggml__tokens=["a", "模"],
    tokenizer__chat_template="{{ messages }}",
)


@pytest.fixture(autouse=True)
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> hub.Entry:
    monkeypatch.delenv("TRIVIUM_MODEL", raising=False)
    monkeypatch.delenv("TRIVIUM_OFFLINE", raising=False)
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes(MODEL)
    digest = hashlib.sha256(MODEL).hexdigest()
    source = hub.Wheel("tiny", "1.0", "0" * 64, 1000, "tiny/Tiny.gguf")
    entry = hub.Entry(NAME, "language", source, digest, len(MODEL), "MIT", "A fake.")
    monkeypatch.setattr(hub, "CATALOGUE", {NAME: entry})
    monkeypatch.setattr(hub, "DEFAULT", NAME)
    return entry


def trivium(*arguments: str, **settings: Any) -> Result:
    return CliRunner().invoke(cli.main, arguments, **settings)


@pytest.fixture
def pulled(entry: hub.Entry) -> Path:
    return hub.pull(NAME, source=Path("model.gguf"))


def hf_model(tmp_path: Path) -> Path:
    """A model folder in the shared cache: 2 × 3 numbers in F32 and 4 in BF16."""
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    text = json.dumps(header).encode()
    folder = tmp_path / "hf" / "models--org--name" / "snapshots" / "c0ffee"
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("c0ffee")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(32))
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 2048,
        "num_hidden_layers": 2,
        "hidden_size": 3,
        "vocab_size": 99,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ 模 }}"}', encoding="utf-8")
    return folder


def test_models_before_and_after(tmp_path: Path, entry: hub.Entry) -> None:
    result = trivium("models")
    assert result.stdout.splitlines() == [
        "NAME                 SIZE   LICENCE  WHERE",
        f"tiny-chat (default)  {len(MODEL)} B  MIT      not here: trivium pull tiny-chat",
    ]
    hub.pull(NAME, source=Path("model.gguf"))
    folder = hf_model(tmp_path)
    table = [line.split() for line in trivium("models").stdout.splitlines()]
    assert table[1][-1] == str(entry.path)
    assert table[2][0] == "org/name" and table[2][-1] == str(folder)
    ours, theirs = json.loads(trivium("models", "--json").stdout)
    assert ours == {
        "name": NAME,
        "kind": "language",
        "description": "A fake.",
        "licence": "MIT",
        "size": len(MODEL),
        "default": True,
        "installed": True,
        "origin": "catalogue",
        "path": str(entry.path),
    }
    assert (theirs["name"], theirs["origin"], theirs["default"]) == (
        "org/name",
        "huggingface",
        False,
    )


def test_pull_speaks_on_stderr_only(entry: hub.Entry) -> None:
    result = trivium("pull", NAME, "--from", "model.gguf")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith(f"{NAME} is in {entry.path} (")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "answer", "code", "said"),
    [
        (["--accept-terms"], None, 0, "is in"),
        ([], None, 3, "nobody to ask whether the terms of tiny-chat are accepted: --accept-terms"),
        ([], "n\n", 3, "tiny-chat is not pulled"),
        ([], "y\n", 0, "is in"),
    ],
)
def test_terms_are_shown_and_accepted(
    entry: hub.Entry,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    answer: str | None,
    code: int,
    said: str,
) -> None:
    strict = replace(entry, terms="Be kind.\nTo all.")
    monkeypatch.setattr(hub, "CATALOGUE", {NAME: strict})
    if answer is not None:
        keyboard = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
        monkeypatch.setattr("trivium.cli.models.sys", keyboard)
    result = trivium("pull", NAME, "--from", "model.gguf", *flags, input=answer)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("Be kind.\nTo all.\n") and said in result.stderr
    assert strict.is_pulled == (code == 0)
    if code == 0:  # what is here was accepted
        assert "Be kind" not in trivium("pull", NAME).stderr


def test_pull_without_a_name_is_the_default(entry: hub.Entry) -> None:
    assert trivium("pull", "--from", "model.gguf").exit_code == 0
    assert entry.is_pulled


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["tiny-chta"], 4, "did you mean tiny-chat?"),
        (["model.bin"], 4, "no model 'model.bin'"),
        (["org/name", "--offline"], 4, "offline: org/name is not whole"),
        ([NAME, "--from", "nothing"], 4, "no such file: nothing"),
        ([NAME, "--from", "."], 2, ". is not a file"),
        ([NAME, "--from", "wrong"], 2, "wrong is not what was published: its SHA-256 is e3b0c44"),
        (["a", "b", "--from", "wrong"], 2, "--from takes one NAME"),
    ],
)
def test_pull_that_fails(arguments: list[str], code: int, message: str) -> None:
    Path("wrong").touch()
    result = trivium("pull", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(package_index, "wheel", interrupted)
    result = trivium("pull", NAME)
    assert result.exit_code == 130
    assert result.stderr.split("\n") == [
        "",
        f"stopped: `trivium pull {NAME}` goes on from there",
        "",
    ]


def test_a_bar_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with console.progress_bar("x") as nothing:
        assert nothing is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with console.progress_bar("[bold]x[/bold]") as progress:
        assert progress is not None
        progress(10, None)
        progress(20, 40)


def test_show_before_the_pull() -> None:
    facts = json.loads(trivium("show", NAME, "--json").stdout)
    assert facts["path"] is None and facts["get"] == f"trivium pull {NAME}"
    assert facts["size"] == len(MODEL) and facts["licence"] == "MIT"
    assert f"get           trivium pull {NAME}" in trivium("show", NAME).stdout.splitlines()


@pytest.mark.parametrize("name", [NAME, "model.gguf"])
def test_show_a_gguf_file(name: str, pulled: Path) -> None:
    pytest.importorskip("gguf")
    facts = json.loads(trivium("show", name, "--json").stdout)
    expected = {
        "name": name,
        "architecture": "llama",
        "parameters": 64,
        "context": 8192,
        "layers": 30,
        "width": 32,
        "vocabulary": 2,
        "format": "GGUF",
        "quantisation": "F32 100%",
        "template": "{{ messages }}",
        "licence": "MIT" if name == NAME else "mit",
        "size": len(MODEL),
        "path": str(pulled) if name == NAME else name,
    }
    assert expected.items() <= facts.items()
    text = trivium("show", name).stdout
    assert "template      yes, 14 characters" in text and "context       8,192" in text


def test_show_a_folder(tmp_path: Path) -> None:
    folder = hf_model(tmp_path)
    facts = json.loads(trivium("show", "org/name", "--json").stdout)
    assert facts == {
        "name": "org/name",
        "architecture": "LlamaForCausalLM",
        "parameters": 10,
        "context": 2048,
        "layers": 2,
        "width": 3,
        "vocabulary": 99,
        "format": "safetensors",
        "quantisation": "F32 75%, BF16 25%",
        "template": "{{ 模 }}",
        "licence": None,
        "size": sum(path.stat().st_size for path in folder.iterdir()),
        "path": str(folder),
    }
    (folder / "chat_template.jinja").write_text("own")
    assert json.loads(trivium("show", str(folder), "--json").stdout)["template"] == "own"


@pytest.mark.parametrize(
    "file, content",
    [
        ("config.json", b""),
        ("config.json", b"[]"),
        ("config.json", b"\xff\xfe{}"),
        ("config.json", b"[" * 100_000),
        ("tokenizer_config.json", b"{"),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 8),
        ("model.safetensors", struct.pack("<Q", 2) + b"[]"),
        ("model.safetensors", struct.pack("<Q", 9) + b'{"a": {}}'),
        ("model.safetensors", struct.pack("<Q", 8) + b'{"a": 1}'),
        ("model.safetensors", struct.pack("<Q", 100) + b"{}"),
    ],
)
def test_show_a_broken_folder(tmp_path: Path, file: str, content: bytes) -> None:
    folder = hf_model(tmp_path)
    (folder / file).write_bytes(content)
    result = trivium("show", str(folder))
    assert (result.exit_code, result.stdout) == (2, "")
    assert str(folder / file) in result.stderr and result.stderr.count("\n") == 1


def test_a_folder_named_like_weights(tmp_path: Path) -> None:
    folder = hf_model(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    shown = json.loads(trivium("show", str(folder), "--json").stdout)
    assert shown["format"] == "no weights"


@pytest.mark.parametrize("content", ['{"architectures": 7}', '{"text_config": []}', "{}"])
def test_show_an_odd_folder(tmp_path: Path, content: str) -> None:
    folder = hf_model(tmp_path)
    (folder / "config.json").write_text(content)
    facts = json.loads(trivium("show", str(folder), "--json").stdout)
    assert (facts["parameters"], facts["context"]) == (10, None)


@pytest.mark.parametrize(
    "name, code, message",
    [
        ("empty.gguf", 2, "empty.gguf"),
        ("cut.gguf", 2, "broken or truncated"),
        ("nothing.gguf", 4, "no such file"),
        ("model.bin", 4, "no model 'model.bin'"),
        ("", 4, "no model ''"),
    ],
)
def test_show_what_is_no_model(name: str, code: int, message: str) -> None:
    Path("empty.gguf").touch()
    Path("cut.gguf").write_bytes(MODEL[:-1])
    result = trivium("show", name)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_show_without_the_local_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    result = trivium("show", "model.gguf")
    assert result.exit_code == 2
    assert "pip install 'trivium[local]'" in result.stderr


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Result]:
    """Runs `trivium rm` with somebody at the keyboard, who answers."""

    def answered(answer: str, name: str = NAME) -> Result:
        from trivium.cli import models

        class Keyboard:
            isatty = staticmethod(lambda: True)

        class System:
            stdin = Keyboard()

        monkeypatch.setattr(models, "sys", System)
        return trivium("rm", name, input=answer)

    return answered


def test_rm_asks(pulled: Path, terminal: Callable[..., Result]) -> None:
    result = terminal("n\n")
    assert result.exit_code == 3 and pulled.exists()
    assert f"Delete tiny-chat ({pulled.parent})?" in result.stderr
    assert result.stderr.endswith("trivium: tiny-chat is kept\n")
    result = terminal("y\n")
    assert result.exit_code == 0 and not pulled.exists()
    assert result.stdout == ""
    assert f"deleted tiny-chat: {len(MODEL)} B free" in result.stderr


def test_rm_asks_nobody(pulled: Path) -> None:
    result = trivium("rm", NAME)
    assert result.exit_code == 3 and "give --yes" in result.stderr
    assert pulled.exists()
    assert trivium("rm", NAME, "--yes").exit_code == 0
    assert not pulled.exists()
    assert trivium("rm", NAME, "-y").exit_code == 4


def test_rm_of_the_shared_cache_says_so(tmp_path: Path, terminal: Callable[..., Result]) -> None:
    folder = hf_model(tmp_path)
    result = terminal("n\n", "org/name")
    assert "from the Hugging Face cache that other programs share" in result.stderr
    assert folder.exists()
    result = trivium("rm", "-y", "org/name")
    assert "from the Hugging Face cache that other programs share" in result.stderr
    assert not folder.exists()


def test_rm_keeps_what_is_yours() -> None:
    result = trivium("rm", "-y", "model.gguf")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "model.gguf is your own" in result.stderr
    assert Path("model.gguf").exists()


def test_tables_fit_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    console.print_table(("name", "path"), [("模型 [red]", "x" * 60)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("模型 [red]") and max(map(len, lines[1:])) <= 30
    assert "".join(lines).count("x") == 60


def test_a_failing_index_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **keywords: object) -> None:
        raise TriviumError("pip cannot get the wheel")

    monkeypatch.setattr(package_index, "wheel", fail)
    result = trivium("pull")
    assert (result.exit_code, result.stderr) == (1, "trivium: pip cannot get the wheel\n")
