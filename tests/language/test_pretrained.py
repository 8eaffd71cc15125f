"""What a run left in a folder is a model like any other: it generates, is exported, and is trained
further."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from trivium import checkpoint, hub
from trivium.errors import NotFound, UsageError
from trivium.language.adapters import add_lora, save_adapter
from trivium.language.elmo import ElmoConfig
from trivium.language.engine import Engine
from trivium.language.export import export_folder, export_gguf
from trivium.language.generation import End, Request
from trivium.language.kinds import KINDS
from trivium.language.native_step import NativeStep
from trivium.language.pretrained import load_pretrained, load_trainable
from trivium.language.recurrent import RecurrentConfig
from trivium.language.sampling import Sampling
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import TransformerConfig
from trivium.language.xlnet import XLNetConfig
from trivium.nn import native
from trivium.nn.lora import lora_parameters

SIZES: dict[str, Any] = {"vocab_size": 290, "context": 48, "width": 64, "layers": 2}
CONFIGS: dict[str, tuple[str, Any]] = {
    "llama": ("transformer", TransformerConfig(**SIZES, heads=4, groups=2, hidden=96)),
    "gpt2": (
        "transformer",
        TransformerConfig(
            **SIZES,
            heads=4,
            hidden=96,
            norm="layer",
            mlp="gelu_tanh",
            position="learned",
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
        ),
    ),
    "lstm": ("recurrent", RecurrentConfig(**SIZES)),
    "elmo": ("elmo", ElmoConfig(**SIZES)),
    "xlnet": ("xlnet", XLNetConfig(**SIZES, heads=4, hidden=96)),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the cat sat on the mat and the dog lay on the rug " * 5], 290)


def written(folder: Path, tokenizer: Tokenizer, name: str) -> Any:
    kind, config = CONFIGS[name]
    torch.manual_seed(0)
    model = KINDS[kind][0](config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    checkpoint.save(folder, model, kind, config)
    tokenizer.save(folder)
    return model.eval()


def greedy(engine: Engine, prompt: Sequence[int], count: int) -> list[int]:
    request = Request(list(prompt), Sampling(temperature=0.0), max_tokens=count)
    return [event.id for event in engine.generate(request) if not isinstance(event, End)]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_generates(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Token by token with a cache, what the model gives without one."""
    model = written(tmp_path, tokenizer, name)
    loaded = load_pretrained(tmp_path, device="cpu", precision="float32")
    assert loaded.name == tmp_path.name and loaded.precision == "float32"
    prompt = tokenizer.encode("the cat sat")
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    made = greedy(Engine(loaded), prompt, 8)
    assert made == ids[len(prompt) :]


@pytest.mark.parametrize("name", CONFIGS)
def test_how_a_run_is_kept_in_memory(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Transformers in 8 bits on a CPU, with the native step where it knows their parts; others in
    float32."""
    written(tmp_path, tokenizer, name)
    loaded = load_pretrained(tmp_path, device="cpu")
    small = "packed" if native.library() is not None else "int8"
    assert loaded.precision == (small if CONFIGS[name][0] == "transformer" else "float32")
    assert (NativeStep.of(loaded.model) is not None) == (name == "llama" and small == "packed")
    if CONFIGS[name][0] != "transformer":
        with pytest.raises(UsageError, match="float32"):
            load_pretrained(tmp_path, device="cpu", precision="int8")
        with pytest.raises(UsageError, match="adapters"):
            load_pretrained(tmp_path, device="cpu", adapter=tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_is_trained_further(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = written(tmp_path, tokenizer, name)
    again, _, _ = load_trainable(tmp_path)
    assert again.training and all(p.requires_grad for p in again.parameters())
    state = again.state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(state[key], tensor) and state[key].dtype == torch.float32
    again(torch.tensor([[1, 2, 3]])).sum().backward()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_run_is_exported(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = written(tmp_path / "run", tokenizer, name)
    loaded = load_pretrained(tmp_path / "run", device="cpu", precision="float32")
    export_folder(loaded, tmp_path / "folder")
    export_gguf(loaded, tmp_path / "model.gguf", "F32")
    ids = torch.tensor([tokenizer.encode("the cat sat on the mat")])
    for path in (tmp_path / "folder", tmp_path / "model.gguf"):
        trainable = load_trainable(path)
        torch.testing.assert_close(trainable.model(ids), model(ids), rtol=1e-5, atol=1e-5)
        assert trainable.tokenizer.encode("the cat") == tokenizer.encode("the cat")


def test_a_run_with_an_adapter(tokenizer: Tokenizer, tmp_path: Path) -> None:
    written(tmp_path, tokenizer, "llama")
    model = load_trainable(tmp_path).model
    add_lora(model, rank=2)
    for parameter in lora_parameters(model):
        torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model.eval(), tmp_path / "adapter")
    ids = torch.tensor([[1, 2, 3, 4]])
    loaded = load_pretrained(
        tmp_path, device="cpu", precision="float32", adapter=tmp_path / "adapter"
    )
    torch.testing.assert_close(loaded.model(ids), model(ids), rtol=1e-4, atol=1e-5)


def test_a_folder_with_an_adapter_only_is_a_model(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """And an adapter may be for the model that another one makes."""
    base = tmp_path / "base"
    written(base, tokenizer, "llama")
    ids = torch.tensor([[1, 2, 3, 4]])
    previous = base
    for name, named in (("sft", "../base"), ("dpo", str(tmp_path / "sft"))):
        model = load_trainable(previous).model
        add_lora(model, rank=2)
        for parameter in lora_parameters(model):
            torch.nn.init.normal_(parameter, std=0.1)
        previous = tmp_path / name
        save_adapter(model.eval(), previous, base=named)
        wanted = model(ids)
        for found in (
            load_trainable(hub.find(str(previous))).model,
            load_pretrained(previous, device="cpu", precision="float32").model,
        ):
            torch.testing.assert_close(found(ids), wanted, rtol=1e-4, atol=1e-5)
    assert load_pretrained(previous, device="cpu").name == "dpo"


@pytest.mark.parametrize(
    ("base", "error", "match"),
    [
        ("", UsageError, "does not name the model"),
        ("/nowhere/base", NotFound, "is an adapter for /nowhere/base: no "),
        ("smollm2-135m-instruct", NotFound, "trivium pull smollm2-135m-instruct"),
        (".", UsageError, "is an adapter for itself"),
    ],
)
def test_an_adapter_whose_base_is_not_here(
    base: str, error: type[Exception], match: str, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(error, match=match) as raised:
        load_pretrained(tmp_path, device="cpu")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        ({"kind": "perceptron"}, "perceptron.*transformer"),
        ({"kind": "transformer", "colour": "red"}, "colour"),
        ({"kind": "transformer", "norm": "batch"}, "makes no transformer"),
        ({"kind": "transformer", "width": "wide"}, "makes no transformer"),
        ({"kind": "transformer", "layers": 3}, "missing"),
        ({"kind": "transformer", "layers": 1}, "not expected"),
        ({"kind": "transformer", "width": 32}, "shape"),
    ],
)
def test_a_broken_run_is_named(
    broken: dict[str, Any], match: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    import json

    written(tmp_path, tokenizer, "llama")
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | broken))
    with pytest.raises(UsageError, match=match):
        load_pretrained(tmp_path, device="cpu", precision="float32")


def test_a_run_without_weights_or_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    written(tmp_path, tokenizer, "llama")
    (tmp_path / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(NotFound, match="tokenizer.json"):
        load_pretrained(tmp_path, device="cpu", precision="float32")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NotFound, match="model.safetensors"):
        load_pretrained(tmp_path, device="cpu", precision="float32")
