"""SFT, rewards, DPO and GRPO beside TRL's trainers, on the same model, texts and batches.

    python bench/alignment.py [sft reward dpo grpo] [--samples 64] [--rows 8] [--length 256]
                              [--threads 1] [--rounds 1] [--vocab 32768]

A small random Llama with adapters (LoRA, rank 16, on all matrices of its blocks), float32 on a CPU.
The texts are the language reference inside CPython: a prompt is how a paragraph begins, the reply
how it goes on. An epoch over the same samples is timed, model and data already there; each engine
runs in a process of its own, in turn, and the best round counts. TRL has no PPO trainer any more,
so rollouts are compared by GRPO: the same prompts, 8 answers of 32 tokens each.

Rows: real tokens/s (padding does not count; for GRPO those of the answers, generation included),
and the largest resident memory above that before training began, as well as all of it.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path[0] = ""  # not this folder, whose requests.py is not the library that TRL means
TASKS = ("sft", "reward", "dpo", "grpo")
RANK, ANSWERS, NEW = 16, 8, 32
MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6}
ROUNDS_OF_GRPO = 3


def prepared(folder: Path, args: argparse.Namespace) -> None:
    """The model, its tokenizer and the samples, in files that both engines read."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from trivium.data import documents
    from trivium.language import bpe

    texts = list(documents(None))
    tokenizer = bpe.train(texts, 4096)
    rng = random.Random(0)
    samples: list[dict[str, str]] = []
    while len(samples) < args.samples:
        words = rng.choice(texts).split(" ")
        start = rng.randrange(max(1, len(words) - 200))
        prompt = " ".join(words[start : start + rng.randint(5, 25)])
        replies = [
            " " + " ".join(words[at : at + rng.randint(10, 60)])
            for at in (start + 25, rng.randrange(max(1, len(words) - 60)))
        ]
        if all(len(tokenizer.encode(prompt + reply)) < args.length for reply in replies):
            names = ("prompt", "chosen", "rejected")
            samples.append(dict(zip(names, (prompt, *replies), strict=True)))
    (folder / "samples.json").write_text(json.dumps(samples))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos,
        bos_token_id=None,
        pad_token_id=0,
        num_labels=1,
        **SIZES,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    LlamaForSequenceClassification(config).save_pretrained(folder / "reward")
    for name in ("model", "reward"):
        tokenizer.save(folder / name)
        made = json.loads((folder / name / "tokenizer_config.json").read_text())
        made["pad_token"] = made["eos_token"]
        (folder / name / "tokenizer_config.json").write_text(json.dumps(made))


def resident() -> float:
    """MB now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """MB at most since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


# -- trivium --------------------------------------------------------------------------------------


def ours(task: str, folder: Path, args: argparse.Namespace) -> Iterator[Any]:
    """Ready at the first `next`, done at the second; then how many tokens there were."""
    from trivium.data import ConversationBatches, PreferenceBatches, conversations, preferences
    from trivium.language.adapters import add_lora
    from trivium.language.alignment.dpo import dpo_loss
    from trivium.language.alignment.reference import Reference
    from trivium.language.alignment.reward import RewardModel, reward_loss
    from trivium.language.losses import masked_token
    from trivium.language.pretrained import load_trainable
    from trivium.train import TrainConfig, train

    model, tokenizer, _ = load_trainable(folder / "model")
    add_lora(model, RANK, 2.0 * RANK)
    samples = json.loads((folder / "samples.json").read_text())

    def render(messages: Any, tools: Any) -> Any:
        prompt, reply = (tokenizer.encode(message["content"]) for message in messages)
        return [*prompt, *reply, tokenizer.eos], [False] * len(prompt) + [True] * (len(reply) + 1)

    settings = {"rows": args.rows, "length": args.length, "epochs": 1, "seed": 0}
    plan = partial(TrainConfig, learning_rate=1e-4, weight_decay=0.0)
    if task == "grpo":
        yield from _our_grpo(model, tokenizer, samples, args)
        return
    if task == "sft":
        records = [{"prompt": s["prompt"], "completion": s["chosen"]} for s in samples]
        batches: Any = ConversationBatches(conversations(records), render, **settings)
        loss: Any = masked_token
        tokens = sum(len(tokenizer.encode(s["prompt"] + s["chosen"])) + 1 for s in samples)
    else:
        batches = PreferenceBatches(preferences(samples), render, **settings)
        both = ("chosen", "rejected")
        tokens = sum(len(tokenizer.encode(s["prompt"] + s[n])) + 1 for s in samples for n in both)
        loss = partial(dpo_loss, reference=Reference(model))
        if task == "reward":
            model, loss = RewardModel.of(model), reward_loss
    steps = train(model, loss, batches, plan(steps=10**6))
    yield None
    for _ in steps:
        pass
    yield tokens


def _our_grpo(model: Any, tokenizer: Any, samples: Any, args: argparse.Namespace) -> Iterator[Any]:
    from trivium.language.alignment.experience import GRPOExperience
    from trivium.language.alignment.policy import grpo_loss
    from trivium.language.alignment.reference import Reference
    from trivium.language.alignment.rollouts import Answerer, Prompt, Rollouts
    from trivium.language.chat_template import ChatTemplate
    from trivium.language.pretrained import LanguageModel
    from trivium.train import TrainConfig, train

    template = ChatTemplate("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    of = LanguageModel("bench", model, tokenizer, template, "float32")
    answerer = Answerer(of, max_tokens=NEW, together=args.rows * ANSWERS)
    prompts = [Prompt([{"role": "user", "content": s["prompt"]}]) for s in samples]
    reference = Reference(model)
    made = [0]

    def reward(prompts: Any, answers: Any) -> list[float]:
        made[0] += sum(len(answer.ids) for answer in answers)
        return [float(len(set(answer.ids))) for answer in answers]

    rollouts = Rollouts(
        answerer,
        prompts,
        [answerer.encode(prompt) for prompt in prompts],
        GRPOExperience(model, reference, reward, filler=0),
        asked=args.rows,
        of_each=ANSWERS,
        rows=2 * args.rows,
    )
    plan = TrainConfig(steps=ROUNDS_OF_GRPO, accumulate=ANSWERS // 2, learning_rate=1e-4)
    steps = train(model, grpo_loss, rollouts, plan)
    yield None
    for _ in steps:
        pass
    yield made[0]


# -- TRL ------------------------------------------------------------------------------------------


def trl(task: str, folder: Path, args: argparse.Namespace) -> Iterator[Any]:
    """As `ours`."""
    warnings.simplefilter("ignore")
    import trl as library
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    samples = json.loads((folder / "samples.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    shared: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": args.rows,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    kind = "SEQ_CLS" if task == "reward" else "CAUSAL_LM"
    adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=MATRICES, task_type=kind)
    more: dict[str, Any] = {"processing_class": tokenizer, "peft_config": adapter}
    both = ("chosen", "rejected")
    tokens = sum(len(tokenizer(s["prompt"] + s[n])["input_ids"]) + 1 for s in samples for n in both)
    if task == "reward":
        scored = AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1)
        config = library.RewardConfig(**shared, max_length=args.length)
        trainer = library.RewardTrainer(
            scored, args=config, train_dataset=Dataset.from_list(samples), **more
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(folder / "model")
    if task == "sft":
        data = [{"prompt": s["prompt"], "completion": s["chosen"]} for s in samples]
        tokens = sum(len(tokenizer(s["prompt"] + s["chosen"])["input_ids"]) + 1 for s in samples)
        config = library.SFTConfig(**shared, max_length=args.length)
        trainer = library.SFTTrainer(
            model, args=config, train_dataset=Dataset.from_list(data), **more
        )
    elif task == "dpo":
        config = library.DPOConfig(**shared, max_length=args.length)
        trainer = library.DPOTrainer(
            model, args=config, train_dataset=Dataset.from_list(samples), **more
        )
    made = [0]
    if task == "grpo":

        def reward(completion_ids: Any, **_: Any) -> list[float]:
            made[0] += sum(len(ids) for ids in completion_ids)
            return [float(len(set(ids))) for ids in completion_ids]

        del shared["num_train_epochs"]
        shared |= {"per_device_train_batch_size": 2 * args.rows, "max_steps": ROUNDS_OF_GRPO}
        config = library.GRPOConfig(
            **shared,
            num_generations=ANSWERS,
            gradient_accumulation_steps=ANSWERS // 2,
            max_completion_length=NEW,
            temperature=1.0,
            beta=0.04,
        )
        prompts = Dataset.from_list([{"prompt": s["prompt"]} for s in samples])
        trainer = library.GRPOTrainer(
            model, reward_funcs=reward, args=config, train_dataset=prompts, **more
        )
    yield None
    trainer.train()
    yield made[0] or tokens


def measure(engine: str, task: str, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    import torch

    torch.set_num_threads(args.threads)
    run = {"trivium": ours, "trl": trl}[engine](task, folder, args)
    next(run)
    before = resident()
    reset_peak()
    start = time.perf_counter()
    tokens = next(run)
    seconds = time.perf_counter() - start
    return {"tokens/s": tokens / seconds, "peak MB above": peak() - before, "peak MB": peak()}


def child(engine: str, task: str, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, task, "--child", engine, "--folder", str(folder)]
    for name in ("samples", "rows", "length", "threads", "vocab"):
        command += [f"--{name}", str(getattr(args, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{engine} {task} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--child")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child, args.tasks[0], args.folder, args)))
        return
    print(f"{args.samples} samples, {args.rows} a step, {args.threads} thread(s), float32, LoRA")
    print(f"{'':8}{'':14}{'trivium':>10}{'trl':>10}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as place:
        prepared(Path(place), args)
        for task in args.tasks:
            rounds = [
                {engine: child(engine, task, Path(place), args) for engine in ("trl", "trivium")}
                for _ in range(args.rounds)
            ]
            for name in ("tokens/s", "peak MB above", "peak MB"):
                best = max if name == "tokens/s" else min
                mine, peer = (best(r[e][name] for r in rounds) for e in ("trivium", "trl"))
                row = f"{task:8}{name:14}{mine:10.0f}{peer:10.0f}{mine / peer:8.2f}"
                print(row, flush=True)


if __name__ == "__main__":
    main()
