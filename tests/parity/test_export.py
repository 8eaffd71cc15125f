"""Export: what is written and loaded again is the same model, for us and for `transformers`; and
the names in a GGUF file are those that llama.cpp's own converter gives."""

import json
import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from trivium.errors import UsageError
from trivium.gguf_file import GGUFFile
from trivium.language.chat_template import ChatTemplate
from trivium.language.embed import Embedder
from trivium.language.export import FILE_TYPES, export_folder, export_gguf
from trivium.language.families import FAMILIES, family_of
from trivium.language.pretrained import LanguageModel, load_pretrained, read_folder
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer, TransformerConfig

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
BASE: dict[str, Any] = {
    "vocab_size": 320,
    "context": 64,
    "width": 32,
    "layers": 2,
    "heads": 4,
    "groups": 2,
    "head_dim": 16,
    "hidden": 64,
    "norm_eps": 1e-6,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA: dict[str, Any] = {
    "layers": 7,
    "head_dim": 256,  # what transformers assumes of Gemma and Qwen3 in GGUF files
    "norm": "rms",
    "block": "sandwich",
    "stem": "scaled",
    "mlp": "geglu",
    "position": "windowed_rotary",
    "rope_base": 1e6,
    "window": 6,
    "full_layers": (5,),
    "qk_norm": True,
}
GPT2: dict[str, Any] = {
    "context": 1024,  # as transformers assumes
    "groups": None,
    "head_dim": None,
    "hidden": 128,
    "norm": "layer",
    "mlp": "gelu_tanh",
    "position": "learned",
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-untied": ("llama", {"tied": False, "rope_base": 5e5}),
    "llama-biases": ("llama", {"qkv_bias": True, "out_bias": True, "mlp_bias": True}),
    "llama-linear-rope": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama3-rope": ("llama", {"rope_scaling": LLAMA3_ROPE}),
    "mistral": ("mistral", {"window": 9, "groups": 1}),
    "qwen2": ("qwen2", {"qkv_bias": True, "head_dim": None}),
    "qwen2-window": (
        "qwen2",
        {"qkv_bias": True, "head_dim": None, "window": 5, "full_layers": (0,)},
    ),
    "qwen3": ("qwen3", {"qk_norm": True, "tied": False, "head_dim": 128}),
    "gemma3": ("gemma3_text", GEMMA),
    "gemma3-scale": ("gemma3_text", {**GEMMA, "query_scale": 24**-0.5}),
    "gpt2": ("gpt2", GPT2),
    "gpt2-gelu": ("gpt2", {**GPT2, "mlp": "gelu"}),
}
NO_GGUF = {  # what the format has no key for
    "mistral": "window",
    "qwen2-window": "window",
    "gemma3-scale": "query_scale",
    "gpt2-gelu": "mlp",
}
NOT_READ_BY_TRANSFORMERS = {"llama-biases", "llama-linear-rope", "llama3-rope"}
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
TEXTS = ["the cat sat", "  <|im_end|> 12345 naïve\n", "猫🙂"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the cat sat on the mat; naïve 12345 " * 5], 290)


@pytest.fixture(params=CASES)
def made(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> tuple[str, LanguageModel]:
    family, changes = CASES[request.param]
    config = TransformerConfig(**{**BASE, **changes})
    assert family_of(config).model_type == family
    return request.param, LanguageModel(
        "tiny", randomised(config), tokenizer, ChatTemplate(TEMPLATE), "float32"
    )


def randomised(config: TransformerConfig) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(290, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = model(ids)
    return output if isinstance(output, torch.Tensor) else output.logits


def assert_same(again: LanguageModel, model: LanguageModel) -> None:
    ours, theirs = again.model.state_dict(), model.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    torch.testing.assert_close(logits(again.model), logits(model.model), rtol=0, atol=2e-6)
    for text in TEXTS:
        for how in ({}, {"wrap": True}, {"special": True}):
            assert again.tokenizer.encode(text, **how) == model.tokenizer.encode(text, **how)
    assert again.tokenizer.stop_ids == model.tokenizer.stop_ids
    messages = [{"role": "user", "content": "hi"}]
    assert again.template is not None and model.template is not None
    assert again.template.render(messages) == model.template.render(messages)


def test_every_family_is_tried() -> None:
    tried = {family for family, _ in CASES.values()} | {"bert"}
    assert tried == {family.model_type for family in FAMILIES}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_folder(made: tuple[str, LanguageModel], tmp_path: Path, precision: str) -> None:
    """To the bit for us; equal logits for transformers, which takes every weight it knows."""
    _, model = made
    exact = replace(model, model=model.model.to(getattr(torch, precision)))
    export_folder(exact, tmp_path / "out")
    again = load_pretrained(tmp_path / "out", device="cpu", precision=precision)
    assert_same(again, exact)
    reference, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected = logits(reference.eval())
    ours = logits(exact.model.float())
    assert (ours - expected).abs().max() / expected.abs().max() < 1e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        theirs = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert theirs == model.tokenizer.encode(text, special=True)
    assert tokenizer.chat_template == TEMPLATE


def test_gguf(made: tuple[str, LanguageModel], tmp_path: Path) -> None:
    """F32 to the bit, BF16 of a bfloat16 model too; and transformers reads the same from it."""
    case, model = made
    path = tmp_path / "out.gguf"
    if case in NO_GGUF:
        with pytest.raises(UsageError, match=f"no place for this model's {NO_GGUF[case]}"):
            export_gguf(model, path, "F32")
        assert list(tmp_path.iterdir()) == []
        return
    export_gguf(model, path, "F32")
    assert_same(load_pretrained(path, device="cpu", precision="float32"), model)
    if case not in NOT_READ_BY_TRANSFORMERS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            reference = transformers.AutoModelForCausalLM.from_pretrained(
                tmp_path, gguf_file="out.gguf", dtype=torch.float32
            )
            logging.disable(logging.NOTSET)
        expected = logits(reference.eval())
        assert (logits(model.model) - expected).abs().max() / expected.abs().max() < 1e-4
    half = replace(model, model=model.model.to(torch.bfloat16), precision="bfloat16")
    export_gguf(half, tmp_path / "half.gguf", "BF16")
    assert_same(load_pretrained(tmp_path / "half.gguf", device="cpu", precision="bfloat16"), half)


def test_gguf_names_are_those_of_llama_cpp(made: tuple[str, LanguageModel], tmp_path: Path) -> None:
    case, model = made
    if case in NO_GGUF:
        pytest.skip("has no GGUF")
    family = family_of(model.model.config)
    export_folder(model, tmp_path / "out")
    export_gguf(model, tmp_path / "out.gguf", "F32")
    assert_names(tmp_path, family.gguf, model.model.config.layers)


def assert_names(folder: Path, gguf_name: str, layers: int) -> None:
    from safetensors import safe_open

    (architecture,) = (a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == gguf_name)
    names = gguf.get_tensor_name_map(architecture, layers)
    with safe_open(folder / "out" / "model.safetensors", "pt") as file:
        expected = {names.get_name(key, (".weight", ".bias")) for key in file.keys()}  # noqa: SIM118
    assert set(GGUFFile(folder / "out.gguf").tensors) - {"rope_freqs.weight"} == expected


@pytest.mark.parametrize(
    ("type", "tolerance"),
    [("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 3e-2)]
    + [(name, 0.5) for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1")],
)
def test_types(tokenizer: Tokenizer, tmp_path: Path, type: Any, tolerance: float) -> None:
    model = LanguageModel("tiny", randomised(TransformerConfig(**BASE)), tokenizer, None, "float32")
    export_gguf(model, tmp_path / "out.gguf", type)
    again = load_pretrained(tmp_path / "out.gguf", device="cpu", precision="float32")
    stored = {info.type_name for info in GGUFFile(tmp_path / "out.gguf").tensors.values()}
    assert stored == {"F32", type}
    error = (logits(again.model) - logits(model.model)).abs().max() / logits(
        model.model
    ).abs().max()
    assert 0 < error < tolerance
    reader = gguf.GGUFReader(tmp_path / "out.gguf")  # the reference reader takes it as well
    assert int(reader.fields["general.file_type"].parts[-1][0]) == FILE_TYPES[type]


def test_rows_that_fill_no_block(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = TransformerConfig(**{**BASE, "hidden": 40})
    model = LanguageModel("tiny", randomised(config), tokenizer, None, "float32")
    export_gguf(model, tmp_path / "out.gguf", "Q8_0")
    tensors = GGUFFile(tmp_path / "out.gguf").tensors
    assert tensors["blk.0.ffn_down.weight"].type_name == "F16"
    assert tensors["blk.0.ffn_up.weight"].type_name == "Q8_0"


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_bert(tmp_path: Path, activation: str) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##ting", ".", "猫"]
    config = TransformerConfig(
        **{**BASE, **GPT2, "mlp": activation, "vocab_size": len(words), "norm_eps": 1e-12},
        block="post",
        stem="bert",
        token_types=2,
        causal=False,
    )
    source = tmp_path / "words"
    transformers.BertTokenizer(vocab={w: i for i, w in enumerate(words)}).save_pretrained(source)
    tokenizer = Tokenizer.from_folder(source)
    model = Embedder("tiny", randomised(config), tokenizer, "cls", False, 30)
    export_folder(model, tmp_path / "out")
    again = Embedder.load(tmp_path / "out")
    texts = ["the cat sitting", "猫 sat."]
    assert (again.pooling, again.normalise, again.max_tokens) == ("cls", False, 30)
    assert torch.equal(again.embed(texts), model.embed(texts))
    reference = transformers.BertModel.from_pretrained(tmp_path / "out", add_pooling_layer=False)
    ids = torch.randint(5, len(words), (2, 20))
    with torch.no_grad():
        expected = reference.eval()(ids).last_hidden_state
        ours = model.model.features(ids)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    if activation == "gelu_tanh":
        with pytest.raises(UsageError, match="mlp"):
            export_gguf(model, tmp_path / "out.gguf", "F32")
        return
    export_gguf(model, tmp_path / "out.gguf", "F32")
    again = Embedder.load(tmp_path / "out.gguf")
    torch.testing.assert_close(
        again.embed(texts), torch.nn.functional.normalize(model.embed(texts), dim=-1)
    )
    assert_names(tmp_path, "bert", config.layers)


def test_what_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = LanguageModel("tiny", randomised(TransformerConfig(**BASE)), tokenizer, None, "float32")
    export_folder(model, tmp_path / "out")
    for precision in ("int8", "packed"):
        rounded = load_pretrained(tmp_path / "out", device="cpu", precision=precision)
        for write in (export_folder, export_gguf):
            with pytest.raises(UsageError, match="rounded weights.*bfloat16 or float32"):
                write(rounded, tmp_path / "again")
    for write in (export_folder, export_gguf):
        with pytest.raises(UsageError, match="exists already"):
            write(model, tmp_path / "out")
    with pytest.raises(UsageError, match="'Q4_K'.*Q8_0"):
        export_gguf(model, tmp_path / "x.gguf", "Q4_K")  # type: ignore[arg-type]
    odd = TransformerConfig(**BASE, norm="layer")
    with pytest.raises(UsageError, match="no published family"):
        export_folder(replace(model, model=randomised(odd)), tmp_path / "odd")
    odd = TransformerConfig(**BASE, mlp_bias=True, qkv_bias=True)
    with pytest.raises(UsageError, match="no place for this model's"):
        export_folder(replace(model, model=randomised(odd)), tmp_path / "odd")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_nothing_is_left_of_a_failed_export(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LanguageModel("tiny", randomised(TransformerConfig(**BASE)), tokenizer, None, "float32")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", full)
    for write in (export_folder, export_gguf):
        with pytest.raises(Exception, match="no space left"):
            write(model, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


def test_old_and_new_spellings_of_a_config(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The names before transformers 5 mean the same: Gemma's two bases, its pattern of layers."""
    changes = {**GEMMA, "layers": 13, "full_layers": (5, 11), "rope_base": 5e5}
    config = TransformerConfig(**{**BASE, **changes}, window_rope_base=2e4)
    model = LanguageModel("tiny", randomised(config), tokenizer, None, "float32")
    export_folder(model, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    raw = json.loads(path.read_text())
    assert (raw.pop("rope_theta"), raw.pop("rope_local_base_freq")) == (5e5, 2e4)
    del raw["layer_types"], raw["rope_scaling"]
    raw["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    path.write_text(json.dumps(raw))
    again = read_folder(tmp_path / "out", CPU, "float32")
    assert torch.equal(logits(again), logits(model.model))
