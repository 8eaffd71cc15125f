"""The classifier and its loss L_FT + λ·L_PT, written out."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trivium.checkpoint import save
from trivium.errors import UsageError
from trivium.language.classifier import Classifier, ClassifierConfig, classification
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.models import load_checkpoint

SIZES = {"vocab_size": 61, "context": 24, "width": 32, "layers": 2, "heads": 4, "hidden": 48}
LENGTHS = [9, 1, 4]


def model() -> Classifier:
    torch.manual_seed(0)
    made = Classifier(ClassifierConfig(**SIZES, classes=("a", "b", "c")))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def batch() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        "ids": torch.randint(61, (3, 9), generator=rng),
        "lengths": torch.tensor(LENGTHS),
        "labels": torch.tensor([2, 0, 1]),
    }


@pytest.mark.parametrize("language", [0.0, 0.5])
def test_the_loss_is_that_of_each_text_alone(language: float) -> None:
    made, data = model(), batch()
    loss = classification(language)(made, data)
    task, told, right = 0.0, 0.0, 0
    for row, length, label in zip(data["ids"], LENGTHS, data["labels"], strict=True):
        ids = row[None, :length]
        logits = made(ids)
        task += F.cross_entropy(logits, label[None]).item()
        right += int(logits.argmax() == label)
        if length > 1:
            told += F.cross_entropy(made.body(ids)[0, :-1], ids[0, 1:]).item()
    assert loss.total.item() == pytest.approx(task + language * told, rel=1e-5)
    assert loss.weight == 3 and int(loss.metrics["accuracy"]) == right
    assert float(loss.metrics["task_loss"]) == pytest.approx(task, rel=1e-5)
    if language:
        assert float(loss.metrics["language_loss"]) == pytest.approx(told, rel=1e-5)
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_padding_changes_nothing() -> None:
    made, data = model(), batch()
    before = made(data["ids"], data["lengths"])
    changed = data["ids"].clone()
    changed[1, 1:] = 5
    torch.testing.assert_close(made(changed, data["lengths"]), before, rtol=0, atol=1e-6)


def test_around_a_model_that_was_trained() -> None:
    body = Transformer(TransformerConfig(**SIZES))
    made = Classifier.of(body, ["no", "yes"])
    assert made.body is body and made.config.classes == ("no", "yes")
    assert made(batch()["ids"]).shape == (3, 2)
    with pytest.raises(UsageError, match="causal"):
        Classifier.of(Transformer(TransformerConfig(**SIZES, causal=False)), ["no", "yes"])


def test_saved_and_loaded(tmp_path: Path) -> None:
    made = model()
    save(tmp_path, made, "classifier", made.config)
    again = load_checkpoint(tmp_path)
    assert isinstance(again, Classifier) and again.config == made.config
    assert torch.equal(again(batch()["ids"]), made(batch()["ids"]))
