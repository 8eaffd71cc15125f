"""`trivium serve` as a process: what it says, how it stops, what it refuses."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from trivium.cli import main
from trivium.language.tokenizer import Tokenizer


def serve(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "trivium", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, engine: object, tokenizer: object) -> Path:
    """A tiny model in a Hugging Face folder."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models") / "mini"
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size,  # type: ignore[attr-defined]
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=65_536,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder)  # type: ignore[attr-defined]
    return folder


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator["tuple[subprocess.Popen[str], str]"]:
    """A server as a process of its own, when it answers, and its URL."""
    with serve(*arguments, "--port", "0", "--threads", "1", **environment) as process:
        assert process.stderr is not None
        try:
            first = process.stderr.readline()
            assert first.startswith("trivium: http://127.0.0.1:")
            assert process.stderr.readline() == "trivium: ready\n"
            yield process, first.split()[1]
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_served_folder(folder: Path, number: signal.Signals, code: int) -> None:
    with served("-m", str(folder), TRIVIUM_API_KEY="sk-1") as (process, url):
        key = {"Authorization": "Bearer sk-1"}
        assert httpx.get(f"{url}/models").status_code == 401
        assert httpx.get(f"{url}/models", headers=key).json()["data"][0]["id"] == "mini"
        body = {"model": "mini", "prompt": "Hello", "max_tokens": 3}
        answer = httpx.post(f"{url}/completions", json=body, headers=key)
        assert answer.status_code == 200, answer.text
        process.send_signal(number)
        out, rest = process.communicate(timeout=20)
    assert process.returncode == code
    assert out == "" and rest.strip() == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_end_during_a_stream(
    folder: Path, tokenizer: Tokenizer, number: signal.Signals, code: int
) -> None:
    """The answer is cut with an error that says so; a second server cannot have the port."""
    (letter,) = tokenizer.encode("e")
    body = {"model": "mini", "prompt": "Hello", "max_tokens": 60_000, "stream": True}
    body |= {"logit_bias": {str(letter): 100}}
    with served("-m", str(folder)) as (process, url):
        port = url.rpartition(":")[2].partition("/")[0]
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=30) as stream:
            lines = stream.iter_lines()
            assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["text"] == "e"
            second = CliRunner().invoke(main, ["serve", "-m", str(folder), "--port", port])
            assert second.exit_code == 1 and "is taken" in second.stderr
            process.send_signal(number)
            *_, fault, done = [line for line in lines if line]
        assert json.loads(fault.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert done == "data: [DONE]"
        out, rest = process.communicate(timeout=20)
    assert (process.returncode, out, rest.strip()) == (code, "", "")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["-m", "no-such-model"], 4, "no-such-model"),
        (["-m", "remote:x"], 2, "remote:x"),
        (["--host", "0.0.0.0", "-m", "FOLDER"], 2, "--api-key"),
        (["-m", "FOLDER", "-m", "FOLDER"], 2, "mini"),
        (["-m", "FOLDER", "--api-key", "ключ"], 2, "ASCII"),
        (["-m", "BROKEN", "--port", "0"], 2, "architecture"),
        (["--port", "70000"], 2, "70000"),
    ],
)
def test_what_it_refuses(
    folder: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    places = {"FOLDER": str(folder), "BROKEN": str(broken)}
    result = CliRunner().invoke(main, ["serve", *(places.get(a, a) for a in arguments)])
    assert result.exit_code == code
    lines = [line for line in result.stderr.splitlines() if "http://" not in line]
    assert len(lines) == 1 and says in lines[0]


def test_a_port_that_is_taken(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(main, ["serve", "-m", str(folder), "--port", port])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1 and "--port" in result.stderr


def test_help_is_light() -> None:
    start = time.monotonic()
    script = "import sys; from trivium.cli import serve; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"torch", "fastapi", "uvicorn", "pydantic"} & set(run.stdout.split()) == set()
    assert time.monotonic() - start < 30
