"""Adapters against the PEFT library, on tiny random weights of transformers, in both directions.

Logits within 1e-4 of the largest, in float32."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trivium.errors import NotFound, UsageError
from trivium.language.adapters import add_lora, load_adapter, save_adapter
from trivium.language.export import export_gguf
from trivium.language.pretrained import LanguageModel, load_pretrained, read_folder, read_gguf
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.nn.lora import lora_layers, lora_parameters, merge

transformers = pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "llama": (
        "LlamaForCausalLM",
        {**SMALL, "num_key_value_heads": 2},
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ),
    "some-parts": (
        "LlamaForCausalLM",
        {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
        ["q_proj", "v_proj", "up_proj"],
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
        ["c_attn", "c_proj", "c_fc"],
    ),
    "bert": ("BertForMaskedLM", SMALL, ["query", "value"]),
}
IDS = torch.randint(300, (2, 20), generator=torch.Generator().manual_seed(1))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


@pytest.fixture(params=CASES, scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(model of transformers, its folder, names of modules)"""
    name, values, targets = CASES[request.param]
    config = getattr(transformers, name.split("For")[0].split("LM")[0] + "Config")(**values)
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return model, folder, targets


def fresh(base: Any) -> Any:
    return type(base[0]).from_pretrained(base[1]).eval()


def random_adapter(model: Any) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or ".parts." in name:
                parameter.normal_(0, 0.2)


def ours(base: Any) -> Transformer:
    return read_folder(base[1], CPU, "float32")


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        out = model(IDS)
    return out if isinstance(out, Tensor) else out.logits


def test_what_we_save_peft_loads(base: Any, tmp_path: Path) -> None:
    model = ours(base)
    before = logits(model)
    add_lora(model, rank=3, alpha=7, targets=base[2])
    random_adapter(model)
    model.eval()
    save_adapter(model, tmp_path, base="tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(fresh(base), tmp_path).eval()
    assert relative(logits(model), logits(theirs)) < 1e-4
    assert relative(logits(model), before) > 1e-2
    merge(model)
    assert relative(logits(model), logits(theirs)) < 1e-4


def test_what_peft_saves_we_load(base: Any, tmp_path: Path) -> None:
    targets = base[2]
    config = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=targets, fan_in_fan_out="c_attn" in targets
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(fresh(base), config).eval()
        random_adapter(theirs)
        theirs.save_pretrained(tmp_path)
    model = ours(base)
    load_adapter(model, tmp_path)
    model.eval()
    assert relative(logits(model), logits(theirs)) < 1e-4
    merged = read_folder(base[1], CPU, "float32", adapters=[tmp_path])
    assert relative(logits(merged), logits(theirs)) < 1e-4
    assert not list(lora_layers(merged))


def test_gradients_are_those_of_peft(base: Any, tmp_path: Path) -> None:
    model = ours(base)
    add_lora(model, rank=3, alpha=7, targets=base[2])
    random_adapter(model)
    save_adapter(model.eval(), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(fresh(base), tmp_path, is_trainable=True).eval()
    model(IDS).square().mean().backward()
    theirs(IDS).logits.square().mean().backward()
    mine = torch.stack([p.grad.norm() for p in lora_parameters(model) if p.grad is not None])
    peers = [p.grad.norm() for n, p in theirs.named_parameters() if "lora_" in n]
    assert len(mine) == len(peers)
    assert relative(mine.sort().values, torch.stack(peers).sort().values) < 1e-4


# -- on packed weights ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Transformer]:
    """A GGUF file of 4 bits, an adapter for it, and the model with both in float32."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer = Tokenizer.train(["the cat sat on the mat " * 5], 290)
    torch.manual_seed(0)
    sizes = {"width": 64, "layers": 2, "heads": 4, "groups": 2, "hidden": 96, "context": 64}
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, norm_eps=1e-6, **sizes)
    model = Transformer(config).requires_grad_(False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    export_gguf(LanguageModel("tiny", model, tokenizer, None, "float32"), folder / "m.gguf", "Q4_1")
    from trivium.gguf_file import GGUFFile

    exact = read_gguf(GGUFFile(folder / "m.gguf"), CPU, "float32")
    add_lora(exact, rank=2, alpha=4, targets=["q_proj", "v_proj", "down_proj"])
    with torch.no_grad():
        for parameter in lora_parameters(exact):
            parameter.normal_(0, 0.1)
    save_adapter(exact.eval(), folder / "adapter")
    return folder / "m.gguf", folder / "adapter", exact


@pytest.mark.parametrize("precision", ["auto", "int8", "float32"])
def test_an_adapter_on_a_packed_model(
    published: tuple[Path, Path, Transformer], precision: Any
) -> None:
    """The rounding is that of the unchanged model, not more."""
    path, adapter, exact = published
    ids = IDS % exact.config.vocab_size
    with torch.no_grad():
        wanted = exact(ids)
        plain = load_pretrained(path, device="cpu", precision=precision).model(ids).float()
        merged = load_pretrained(path, device="cpu", precision=precision, adapter=adapter)
        found = merged.model(ids).float()
        base = load_pretrained(path, device="cpu", precision="float32").model(ids)
    assert relative(found, wanted) < 1.5 * relative(plain, base) + 1e-5
    assert relative(plain, wanted) > 0.1  # the adapter does something


def test_untouched_matrices_keep_their_blocks(
    published: tuple[Path, Path, Transformer],
) -> None:
    from trivium.nn import native
    from trivium.nn.packed import PackedLinear

    if native.library() is None:
        pytest.skip("packed weights need the kernels to be the default")
    path, adapter, _ = published
    model = load_pretrained(path, device="cpu", adapter=adapter).model
    kinds = {n: m.kind for n, m in model.named_modules() if isinstance(m, PackedLinear)}
    assert kinds["layers.0.attention.out"] == kinds["layers.0.mlp.gate_up"] == "Q4_1"
    assert kinds["layers.0.attention.qkv"] == kinds["layers.0.mlp.down"] == "Q8_0"


# -- what does not fit ----------------------------------------------------------------------------


def test_adapters_that_do_not_fit(
    published: tuple[Path, Path, Transformer], tmp_path: Path
) -> None:
    path, adapter, exact = published
    raw = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")

    def attempt(match: str, config: dict[str, Any] | None = None, weights: Any = None) -> None:
        (tmp_path / "adapter_config.json").write_text(json.dumps({**raw, **(config or {})}))
        save_file(tensors if weights is None else weights, tmp_path / "adapter_model.safetensors")
        with pytest.raises(UsageError, match=match):
            load_pretrained(path, device="cpu", adapter=tmp_path)

    attempt("use_dora = True", {"use_dora": True})
    attempt("peft_type = 'IA3'", {"peft_type": "IA3"})
    attempt("r = 0", {"r": 0})
    attempt("r = 3", {"r": 3})
    first = next(iter(tensors))
    attempt(
        "for another model", None, {**tensors, "base_model.model.extra": tensors[first].clone()}
    )
    attempt("for another model", None, {first: tensors[first]})
    attempt("for another model", None, {**tensors, first: tensors[first][:, 1:].contiguous()})
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x80\x02.pickle")
    with pytest.raises(UsageError, match="adapter_model.safetensors"):
        load_pretrained(path, device="cpu", adapter=tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NotFound):
            load_pretrained(path, device="cpu", adapter=folder)
    with pytest.raises(UsageError, match="adapter already"):
        add_lora(exact)


def test_names_that_cannot_be_adapted() -> None:
    model = Transformer(TransformerConfig(vocab_size=61, width=32, layers=1, hidden=48))
    with pytest.raises(UsageError, match="c_attn.*q_proj"):
        add_lora(model, targets=["q_proj", "c_attn"])
    with pytest.raises(UsageError, match="nothing"):
        add_lora(model, targets=[])
    with pytest.raises(UsageError, match="rank"):
        add_lora(model, rank=0)
    with pytest.raises(UsageError, match="no adapter"):
        save_adapter(model, Path("nowhere"))


def test_a_model_of_no_family_keeps_its_own_names(tmp_path: Path) -> None:
    config = TransformerConfig(
        vocab_size=61, width=32, layers=1, hidden=48, norm="layer", qk_norm=True
    )
    torch.manual_seed(0)
    model = Transformer(config)
    plain = Transformer(config)
    plain.load_state_dict(model.state_dict())
    add_lora(model, targets=["qkv", "down"])
    random_adapter(model)
    save_adapter(model, tmp_path)
    load_adapter(plain, tmp_path)
    ids = IDS % 61
    torch.testing.assert_close(plain(ids), model(ids))
