"""BERT's masked-language-model head against BertForMaskedLM: logits and loss within 1e-4 of the
largest, both directions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trivium.data import IGNORE
from trivium.language.export import export_folder
from trivium.language.losses import masked_token
from trivium.language.masking import fill, load_masked
from trivium.language.pretrained import load_trainable, read_folder

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##ting", "mat", "."]


@pytest.fixture(scope="module", params=["gelu", "gelu_new"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        hidden_act=request.param,
    )
    torch.manual_seed(0)
    reference = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("bert")
    reference.save_pretrained(folder)
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(
        folder
    )
    return reference, folder


# No padding: its vector gets no gradient in transformers.
IDS = torch.randint(1, len(WORDS), (3, 12), generator=torch.Generator().manual_seed(1))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def theirs(reference: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = reference(IDS).logits
    return found


def test_logits(pair: tuple[Any, Path]) -> None:
    reference, folder = pair
    model = load_masked(folder, device="cpu").model
    with torch.no_grad():
        assert relative(model(IDS), theirs(reference)) < 1e-4


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 3e-2), ("int8", 1e-1)])
def test_other_precisions(pair: tuple[Any, Path], precision: str, tolerance: float) -> None:
    """The bias of the head is not forgotten where the embedding is rounded."""
    reference, folder = pair
    with torch.no_grad():
        found = read_folder(folder, CPU, precision)(IDS).float()
    assert relative(found, theirs(reference)) < tolerance


def test_loss_and_gradients(pair: tuple[Any, Path]) -> None:
    reference, folder = pair
    model = load_trainable(folder).model
    targets = IDS.masked_fill(torch.rand(IDS.shape) < 0.7, IGNORE)
    targets[0, 0] = IDS[0, 0]
    loss = masked_token(model, {"ids": IDS, "targets": targets})
    (loss.total / loss.weight).backward()
    reference.zero_grad()
    wanted = reference(IDS, labels=targets).loss
    wanted.backward()
    torch.testing.assert_close(loss.total / loss.weight, wanted, rtol=1e-5, atol=1e-6)
    head = reference.cls.predictions
    for ours, peer in (
        (model.embedding.weight, reference.bert.embeddings.word_embeddings.weight),
        (model.embedding.bias, head.bias),
        (model.transform.dense.weight, head.transform.dense.weight),
    ):
        assert relative(ours.grad, peer.grad) < 1e-4


def test_without_the_head(pair: tuple[Any, Path]) -> None:
    reference, folder = pair
    model = read_folder(folder, CPU, "float32", head=False)
    assert model.config.transform == "none" and model.embedding.bias is None
    with torch.no_grad():
        assert relative(model.features(IDS), reference.bert(IDS).last_hidden_state) < 1e-4


def test_old_names_of_norms(pair: tuple[Any, Path], tmp_path: Path) -> None:
    """The first published checkpoints say gamma and beta."""
    reference, folder = pair
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    assert any(name.endswith("LayerNorm.gamma") for name in tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with torch.no_grad():
        assert relative(read_folder(tmp_path, CPU, "float32")(IDS), theirs(reference)) < 1e-4


def test_what_we_write_transformers_reads(pair: tuple[Any, Path], tmp_path: Path) -> None:
    reference, folder = pair
    export_folder(load_masked(folder, device="cpu"), tmp_path / "out")
    again, report = transformers.BertForMaskedLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert relative(theirs(again.eval()), theirs(reference)) < 1e-5


def test_fill(pair: tuple[Any, Path]) -> None:
    """The probabilities of the pipeline of transformers."""
    reference, folder = pair
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer("the [MASK] sat.", return_tensors="pt")
    with torch.no_grad():
        p = reference(**batch).logits[0, 2].softmax(-1)
    ((first, *rest),) = fill(load_masked(folder, device="cpu"), "the [MASK] sat.", top=len(WORDS))
    assert first.token == WORDS[int(p.argmax())] and abs(first.p - float(p.max())) < 1e-4
    assert len(rest) == len(WORDS) - 1
