"""Encoders without a library, and text to cut."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

WORDS = ["ant", "bee", "cat", "12", "日本", "ñu", "dog.", "(eel)", "fox,", "—"]


def as_bytes(texts: Sequence[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


def some_text(seed: int, words: int) -> str:
    draw = random.Random(seed)
    joints = [" "] * 12 + ["\n", "\n\n", "\r\n"]
    return "".join(draw.choice(WORDS) + draw.choice(joints) for _ in range(words))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    """write(name, content): the path of a new file."""

    def make(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return make
