"""Beam search against transformers' generate(), on tiny random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trivium.language.beam import beam_search
from trivium.language.engine import Engine
from trivium.language.pretrained import LanguageModel, read_folder
from trivium.language.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

ENDS = list(range(40, 80))  # many end tokens, so that ends are met
PAD = 1


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Engine]:
    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog"] * 9, 290)
    tokenizer.stop_ids = frozenset(ENDS)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    reference = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder: Path = tmp_path_factory.mktemp("model")
    reference.save_pretrained(folder)
    model = read_folder(folder, torch.device("cpu"), "float32")
    return reference, Engine(LanguageModel("tiny", model.eval(), tokenizer, None, "float32"))


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize(("beams", "max_tokens"), [(1, 9), (2, 1), (3, 20), (5, 12), (8, 30)])
def test_same_texts_and_scores(
    pair: tuple[Any, Engine],
    beams: int,
    max_tokens: int,
    length_penalty: float,
    early_stopping: bool | str,
) -> None:
    reference, engine = pair
    reasons = set()
    for prompt in ([5, 6, 7], [100], [9, 120, 33, 250, 8, 11]):
        expected = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=max_tokens,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            do_sample=False,
            eos_token_id=ENDS,
            pad_token_id=PAD,
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = beam_search(
            engine,
            prompt,
            beams=beams,
            max_tokens=max_tokens,
            count=beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,  # type: ignore[arg-type]
        )
        ids = [row[len(prompt) :] for row in expected.sequences.tolist()]
        padded = [[*h.ids, *[PAD] * (len(ids[0]) - len(h.ids))] for h in found]
        assert padded == ids
        if beams > 1:  # one beam is greedy decoding there, without a score
            scores = expected.sequences_scores.tolist()
            assert [h.score for h in found] == pytest.approx(scores, rel=1e-4, abs=1e-4)
        assert [h.ids[-1] in ENDS for h in found] == [h.reason == "stop" for h in found]
        reasons |= {h.reason for h in found}
    assert max_tokens == 1 or "stop" in reasons
