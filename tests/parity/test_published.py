"""The published default model against `transformers` on the same GGUF file, on real text: a page of
the language reference that ships inside CPython."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch

from trivium.gguf_file import GGUFFile
from trivium.language.native_step import NativeStep
from trivium.language.pretrained import load_pretrained, read_gguf
from trivium.language.tokenizer import Tokenizer
from trivium.nn.attention import KVCache

CPU = torch.device("cpu")

pytestmark = pytest.mark.published


@pytest.fixture(scope="module")
def ids(default_model: Path) -> torch.Tensor:
    tokenizer = load_pretrained(default_model, precision="int8").tokenizer
    return torch.tensor([tokenizer.encode(topics["compound"])[:512]])


@pytest.fixture(scope="module")
def expected(default_model: Path, ids: torch.Tensor) -> torch.Tensor:
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            default_model.parent, gguf_file=default_model.name, dtype=torch.float32
        )
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits[0]
    return logits


def logits(path: Path, ids: torch.Tensor, precision: str) -> torch.Tensor:
    with torch.no_grad():
        return read_gguf(GGUFFile(path), CPU, precision)(ids)[0].float()


def perplexity(logits: torch.Tensor, ids: torch.Tensor) -> float:
    return math.exp(torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]).item())


def test_float32_logits(default_model: Path, ids: torch.Tensor, expected: torch.Tensor) -> None:
    ours = logits(default_model, ids, "float32")
    assert (ours - expected).abs().max() / expected.abs().max() < 1e-4


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "packed"])
def test_reduced_precision_keeps_the_quality(
    default_model: Path, ids: torch.Tensor, expected: torch.Tensor, precision: str
) -> None:
    """Perplexity within 1 % of full precision."""
    full, reduced = (
        perplexity(expected, ids),
        perplexity(logits(default_model, ids, precision), ids),
    )
    assert abs(reduced / full - 1) < 0.01, (full, reduced)


def test_the_native_pass_keeps_the_quality(
    default_model: Path, ids: torch.Tensor, expected: torch.Tensor
) -> None:
    """Perplexity within 1 %, and the same best token as in float32 at 97 % of the positions (98.3 %
    when this was written)."""
    step = NativeStep.of(read_gguf(GGUFFile(default_model), CPU, "packed"))
    if step is None:
        pytest.skip("no C compiler here")
    with torch.inference_mode():
        ours = step.extend(ids.tolist(), [KVCache()], every=True)
    full, reduced = perplexity(expected, ids), perplexity(ours, ids)
    assert abs(reduced / full - 1) < 0.01, (full, reduced)
    assert (ours.argmax(-1) == expected.argmax(-1)).float().mean() > 0.97


def test_gemma(published_model: Callable[[str], Path]) -> None:
    """The second published model, beyond its window of 512 tokens: tokens, and float32 logits of
    the dequantised weights."""
    transformers = pytest.importorskip("transformers")
    path = published_model("gemma3-270m")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
    file = GGUFFile(path)
    ids = torch.tensor([Tokenizer.from_gguf(file.metadata).encode(topics["compound"], wrap=True)])
    ids = ids[:, :700]
    with torch.no_grad():
        expected = reference(ids).logits[0]
        ours = read_gguf(file, CPU, "float32")(ids)[0]
    assert (ours - expected).abs().max() / expected.abs().max() < 1e-4
    assert perplexity(ours, ids) < 25  # the text was understood, by tokens too
