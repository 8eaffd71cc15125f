"""The Transformer in training: packed rows, and a model that has generated text before."""

from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.data import IGNORE
from trivium.language.losses import next_token
from trivium.language.transformer import Transformer, TransformerConfig

SIZES = {"vocab_size": 61, "context": 24, "width": 32, "layers": 3, "heads": 4, "hidden": 48}
LEARNED: dict[str, Any] = {"norm": "layer", "position": "learned", "mlp_bias": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"groups": 2},
    "gpt2": {**LEARNED, "mlp": "gelu_tanh", "qkv_bias": True},
    "gemma3": {
        "block": "sandwich",
        "stem": "scaled",
        "mlp": "geglu",
        "position": "windowed_rotary",
        "window": 3,
        "full_layers": (1,),
        "qk_norm": True,
    },
    "bert": {
        **LEARNED,
        "block": "post",
        "stem": "bert",
        "token_types": 2,
        "mlp": "gelu",
        "causal": False,
    },
}
TEXTS = [5, 1, 9, 3, 6, 15]  # tokens
PACKED = [[0, 1, 2, 3], [4], [5]]  # texts of each row


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(0)
    made = Transformer(TransformerConfig(**SIZES, **CONFIGS[request.param])).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def texts() -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randint(61, (length + 1,), generator=rng) for length in TEXTS]


def packed() -> dict[str, Tensor]:
    width = 20
    ids, targets = torch.zeros(3, width, dtype=torch.long), torch.full((3, width), IGNORE)
    segments = torch.full((3, width), -1)
    for row, members in enumerate(PACKED):
        at = 0
        for number in members:
            text = texts()[number]
            place = slice(at, at + len(text) - 1)
            ids[row, place], targets[row, place] = text[:-1], text[1:]
            segments[row, place] = number
            at = place.stop
    return {"ids": ids, "targets": targets, "segments": segments}


def gradients(model: Transformer) -> dict[str, Tensor]:
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return grads


def test_packed_rows_teach_what_their_texts_teach(model: Transformer) -> None:
    """Loss and gradients, within 1e-12 of the largest, in float64."""
    loss = next_token(model, packed())
    loss.total.backward()
    ours = gradients(model)
    total = torch.zeros((), dtype=torch.float64)
    for text in texts():
        one = next_token(model, {"ids": text[None, :-1], "targets": text[None, 1:]})
        one.total.backward()
        total += one.total.detach()
    theirs = gradients(model)
    assert loss.weight == sum(TEXTS)
    torch.testing.assert_close(loss.total.detach(), total, rtol=1e-13, atol=0)
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        error = float((ours[name] - grad).abs().max())
        assert error <= 1e-12 * float(grad.abs().max()), name


def test_a_text_does_not_feel_its_neighbours(model: Transformer) -> None:
    batch = packed()
    with torch.no_grad():
        before = model.features(batch["ids"], segments=batch["segments"])
        changed = batch["ids"].clone()
        changed[0, :5] = 7  # the first text of the first row
        after = model.features(changed, segments=batch["segments"])
    assert torch.equal(before[0, 5:18], after[0, 5:18]) and torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0, :5], after[0, :5])


def test_training_goes_on_after_text_was_generated(model: Transformer) -> None:
    """What was kept in inference mode (tables of angles) serves the backward pass too."""
    ids = texts()[2][None]
    with torch.inference_mode():
        before = model(ids)
    logits = model(ids)
    assert torch.equal(before, logits)
    logits.sum().backward()
    assert gradients(model)
