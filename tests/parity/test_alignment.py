"""Losses of alignment against TRL's trainers, on the same tiny random model and batch; 1e-5."""

import os
import types
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.data import IGNORE
from trivium.language.alignment.dpo import dpo_loss, ipo_loss
from trivium.language.alignment.logprobs import said
from trivium.language.alignment.policy import grpo_loss
from trivium.language.alignment.reference import Reference
from trivium.language.alignment.reward import RewardModel, reward_loss
from trivium.language.pretrained import read_folder
from trivium.language.transformer import Transformer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trl = pytest.importorskip("trl")
    transformers = pytest.importorskip("transformers")
    datasets = pytest.importorskip("datasets")
    tokenizers = pytest.importorskip("tokenizers")

WORDS = [f"w{i}" for i in range(90)]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
BETA, CPU = 0.3, torch.device("cpu")
TRAINING = {
    "per_device_eval_batch_size": 4,
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
}


def perturbed(model: Any, seed: int) -> Any:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=rng))
    return model.eval()


def llama(kind: str, seed: int, **more: Any) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS) + 2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        **SIZES,
        **more,
    )
    return perturbed(getattr(transformers, kind)(config), seed)


def tokenizer() -> Any:
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *WORDS])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>"
    )


def pairs_of_texts() -> Any:
    def text(start: int, count: int) -> str:
        return " ".join(WORDS[(start + 7 * i) % 90] for i in range(count))

    rows = [(text(i, 4 + i), text(3 * i + 1, 6), text(5 * i + 2, 3 + i)) for i in range(4)]
    names = ("prompt", "chosen", "rejected")
    return datasets.Dataset.from_list([dict(zip(names, row, strict=True)) for row in rows])


def ours_of(model: Any, folder: Path) -> Transformer:
    model.save_pretrained(folder)
    loaded = read_folder(folder, CPU, "float32")
    return loaded.requires_grad_(True)


def as_ours(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The chosen replies came first, then the rejected ones."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    count = len(ids) // 2
    batch = {
        "ids": ids,
        "ends": mask.sum(1) - 1,
        "groups": torch.arange(count).repeat(2),
        "ranks": torch.tensor([0, 1]).repeat_interleave(count),
    }
    if (completion := inputs.get("completion_mask")) is not None:
        batch["targets"] = torch.full_like(ids, IGNORE)
        batch["targets"][:, :-1] = torch.where(completion[:, 1:].bool(), ids[:, 1:], IGNORE)
    return batch


@pytest.mark.parametrize(
    ("kind", "loss"),
    [("sigmoid", dpo_loss), ("ipo", ipo_loss)],
)
@pytest.mark.filterwarnings("ignore")
def test_dpo(kind: str, loss: Callable[..., Any], tmp_path: Path) -> None:
    """The loss, the rewards, and the gradient of the policy."""
    policy, reference = llama("LlamaForCausalLM", 0), llama("LlamaForCausalLM", 1)
    ours, before = ours_of(policy, tmp_path / "a"), ours_of(reference, tmp_path / "b")
    data = pairs_of_texts()
    arguments = trl.DPOConfig(str(tmp_path), loss_type=[kind], beta=BETA, **TRAINING)
    trainer = trl.DPOTrainer(
        policy,
        ref_model=reference,
        args=arguments,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer(),
    )
    inputs = next(iter(trainer.get_eval_dataloader()))
    trainer.model.train()
    theirs = trainer.compute_loss(trainer.model, dict(inputs))
    theirs.backward()
    batch = as_ours(inputs)
    found = loss(ours, batch, reference=Reference(before), beta=BETA)
    (found.total / found.weight).backward()
    torch.testing.assert_close(found.total / found.weight, theirs, rtol=1e-5, atol=1e-5)
    assert_same_gradient(ours, policy)
    metrics = trainer._metrics["train"]
    if kind == "sigmoid":
        for name, key in (("accuracy", "accuracies"), ("margin", "margins")):
            mine = float(found.metrics[name] / found.weight)
            assert mine == pytest.approx(metrics[f"rewards/{key}"][0], rel=1e-4, abs=1e-5)


def assert_same_gradient(ours: Transformer, theirs: Any) -> None:
    mine = ours.embedding.weight.grad
    wanted = theirs.get_input_embeddings().weight.grad
    assert mine is not None
    torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.filterwarnings("ignore")
def test_reward_model(tmp_path: Path) -> None:
    theirs = llama("LlamaForSequenceClassification", 0, num_labels=1)
    policy = llama("LlamaForCausalLM", 2)
    policy.model.load_state_dict(theirs.model.state_dict())
    ours = RewardModel.of(ours_of(policy, tmp_path / "a"))
    with torch.no_grad():
        ours.head.weight.copy_(theirs.score.weight)
    data = pairs_of_texts()
    arguments = trl.RewardConfig(str(tmp_path), **TRAINING)
    trainer = trl.RewardTrainer(
        theirs,
        args=arguments,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer(),
    )
    inputs = next(iter(trainer.get_eval_dataloader()))
    trainer.model.train()
    wanted = trainer.compute_loss(trainer.model, dict(inputs))
    wanted.backward()
    found = reward_loss(ours, as_ours(inputs))
    (found.total / found.weight).backward()
    torch.testing.assert_close(found.total / found.weight, wanted, rtol=1e-5, atol=1e-5)
    assert_same_gradient(ours.body, theirs)
    torch.testing.assert_close(
        ours.head.weight.grad, theirs.score.weight.grad, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_grpo(beta: float, tmp_path: Path) -> None:
    """`_compute_loss` of TRL, given the log-probabilities that our model says."""
    ours = ours_of(llama("LlamaForCausalLM", 0), tmp_path)
    rng = torch.Generator().manual_seed(0)
    prompt, answer = (torch.randint(2, 92, (4, n), generator=rng) for n in (5, 7))
    lengths = torch.tensor([7, 3, 5, 1])
    mask = (torch.arange(7) < lengths[:, None]).long()
    ids = torch.cat([prompt, answer], 1)
    targets = torch.full_like(ids, IGNORE)
    targets[:, 4:11] = torch.where(mask.bool(), answer, IGNORE)
    now = said(ours, {"ids": ids, "targets": targets})
    dense = torch.zeros(4, 7).masked_scatter(mask.bool(), now.logprobs)
    old, reference = (dense.detach() + 0.3 * torch.randn(4, 7, generator=rng) for _ in range(2))
    gain = torch.randn(4, generator=rng)
    settings: dict[str, Any] = {
        "beta": beta,
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "aux_loss_enabled": False,
        "use_vllm": False,
        "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1,
        "model": ours.train(),
        "args": types.SimpleNamespace(delta=None, use_bias_correction_kl=False),
        "accelerator": types.SimpleNamespace(
            gather=lambda x: x, reduce=lambda x, **_: x, sync_gradients=True
        ),
        "_metrics": {"train": defaultdict(list)},
        "_get_per_token_logps_and_entropies": lambda *_, **__: (dense, torch.zeros(4, 7), None),
    }
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": answer,
        "completion_mask": mask,
        "advantages": gain,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
    }
    theirs = trl.GRPOTrainer._compute_loss(types.SimpleNamespace(**settings), ours, inputs)
    wide = {name: torch.zeros(4, 12) for name in ("logprobs", "reference")}
    wide["logprobs"][:, 4:11], wide["reference"][:, 4:11] = old, reference
    batch = {"ids": ids, "targets": targets, "advantages": gain, **wide}
    found = grpo_loss(ours, batch, beta=beta)
    torch.testing.assert_close(found.total / found.weight, theirs, rtol=1e-5, atol=1e-6)
