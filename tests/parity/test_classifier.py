"""Scores of classes against the ForSequenceClassification models of transformers, on shared random
weights, padded batches included: within 1e-5 of the largest."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trivium.language.classifier import Classifier
from trivium.language.pretrained import load_trainable, read_folder
from trivium.language.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "Llama": (SMALL, "LlamaForCausalLM"),
    "GPT2": (GPT2, "GPT2LMHeadModel"),
}
PADDING, CLASSES = 0, ("a", "b", "c")


@pytest.mark.parametrize("kind", CASES)
def test_scores(kind: str, tmp_path: Path) -> None:
    values, causal = CASES[kind]
    config = getattr(transformers, f"{kind}Config")(**values, pad_token_id=PADDING, num_labels=3)
    torch.manual_seed(0)
    reference = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    base = getattr(transformers, causal)(config)
    prefix = base.base_model_prefix
    getattr(base, prefix).load_state_dict(getattr(reference, prefix).state_dict())
    base.save_pretrained(tmp_path)
    ours = Classifier.of(read_folder(tmp_path, torch.device("cpu"), "float32"), CLASSES)
    ours.scores.weight.data.copy_(reference.score.weight)
    ids = torch.randint(1, 97, (3, 15), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([15, 1, 8])
    ids[torch.arange(15) >= lengths[:, None]] = PADDING
    with torch.no_grad():
        wanted = reference(ids, attention_mask=(ids != PADDING).long()).logits
        found = ours(ids, lengths)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


def test_a_published_model_is_trained_further(tmp_path: Path) -> None:
    """All weights in float32, with gradients, and the logits of the reference."""
    torch.manual_seed(0)
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).eval()
    reference.bfloat16().save_pretrained(tmp_path)
    Tokenizer.train(["the cat sat"], 260).save(tmp_path)
    model, _, template = load_trainable(tmp_path)
    assert template is None and model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    ids = torch.randint(97, (1, 9))
    with torch.no_grad():
        wanted = reference.float()(ids).logits
    assert float((model(ids) - wanted).detach().abs().max() / wanted.abs().max()) < 1e-4
