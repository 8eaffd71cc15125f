"""A step of training beside the obvious one: a model of transformers and the loop of its tutorials.

    python bench/training.py [--family llama|gpt2] [--layers 10] [--rows 4] [--length 256]
                             [--precision float32|bfloat16] [--device cpu] [--threads 2]
                             [--rounds 2] [--compile]

The same architecture (that of SmolLM2-135M or of GPT-2 124M, with fewer layers unless told), the
same weights, batch, length and precision, fused AdamW and clipping in both. Each engine runs in a
process of its own, `rounds` times in turn; the best round counts, because a shared machine only
makes things slower. Pre-training of GPT-2 on a GPU, beside eager code that is compiled:

    python bench/training.py --family gpt2 --layers 12 --rows 16 --length 1024 \\
                             --precision bfloat16 --device cuda --compile

Rows: tokens/s, peak resident memory (of a GPU: of its tensors), seconds before the first step, and
on a GPU the share of its peak (MFU). `--compile` lets PyTorch's compiler have both models.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SIZES = {
    "llama": {"width": 576, "heads": 9, "groups": 3, "hidden": 1536, "vocab_size": 49152},
    "gpt2": {"width": 768, "heads": 12, "groups": 12, "hidden": 3072, "vocab_size": 50257},
}
WARM, STEPS = 1, 3
LOWER_IS_BETTER = ("start s", "peak MB")


def batches(args: argparse.Namespace) -> Iterator[Tensor]:
    """Rows of ids (B, T + 1), the same in both engines."""
    rng = torch.Generator().manual_seed(0)
    while True:
        yield torch.randint(
            SIZES[args.family]["vocab_size"], (args.rows, args.length + 1), generator=rng
        )


def timed(steps: Iterator[float], args: argparse.Namespace, start: float) -> dict[str, float]:
    """Figures of an engine whose iterator makes a step and gives its loss."""
    losses = [next(steps) for _ in range(WARM)]
    began = time.perf_counter()
    losses += [next(steps) for _ in range(args.steps)]
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if args.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated()
    speed = args.rows * args.length * args.steps / seconds
    return {
        "tokens/s": speed,
        "peak MB": peak / 2**20,
        "start s": began - start,
        **({"MFU %": 100 * share_of_peak(args, speed)} if args.device != "cpu" else {}),
        "last loss": losses[-1],
    }


def ours(args: argparse.Namespace) -> dict[str, float]:
    start = time.perf_counter()
    from trivium.language.losses import next_token
    from trivium.language.pretrained import load_trainable
    from trivium.train import TrainConfig, train

    model = load_trainable(args.folder).model

    def rows() -> Iterator[dict[str, Tensor]]:
        for ids in batches(args):
            yield {"ids": ids[:, :-1].contiguous(), "targets": ids[:, 1:].contiguous()}

    config = TrainConfig(
        steps=WARM + args.steps,
        learning_rate=3e-4,
        schedule="constant",
        precision=args.precision,
        compile=args.compile,
        device=args.device,
    )
    return timed((step.loss for step in train(model, next_token, rows(), config)), args, start)


def transformers(args: argparse.Namespace) -> dict[str, float]:
    start = time.perf_counter()
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32).to(args.device)
    model.train()
    called: Callable[..., Any] = torch.compile(model) if args.compile else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    half = args.precision == "bfloat16"

    def steps() -> Iterator[float]:
        for ids in batches(args):
            ids = ids.to(args.device)
            with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=half):
                # The library shifts labels by itself, over the T tokens that it is given.
                loss = called(input_ids=ids[:, :-1], labels=ids[:, :-1]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            yield loss.item()

    return timed(steps(), args, start)


ENGINES = {"trivium": ours, "transformers": transformers}


def make_model(folder: Path, family: str, layers: int) -> None:
    """Random weights in the library's own layout."""
    import transformers as library

    torch.manual_seed(0)
    sizes = SIZES[family]
    if family == "gpt2":
        config = library.GPT2Config(
            vocab_size=sizes["vocab_size"],
            n_embd=sizes["width"],
            n_layer=layers,
            n_head=sizes["heads"],
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        model = library.GPT2LMHeadModel(config)
    else:
        config = library.LlamaConfig(
            hidden_size=sizes["width"],
            num_hidden_layers=layers,
            num_attention_heads=sizes["heads"],
            num_key_value_heads=sizes["groups"],
            intermediate_size=sizes["hidden"],
            vocab_size=sizes["vocab_size"],
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        )
        model = library.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))


TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 10), ("rows", 4), ("length", 256), ("steps", STEPS)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--family", choices=SIZES, default="llama")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        torch.set_num_threads(args.threads)
        print(json.dumps(ENGINES[args.engine](args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), args.family, args.layers)
        compare(args, Path(folder))


def parameters(family: str, layers: int) -> int:
    """Those that multiply: of the blocks' matrices and of the head."""
    sizes = SIZES[family]
    width, hidden = sizes["width"], sizes["hidden"]
    keys = width // sizes["heads"] * sizes["groups"]
    block = 2 * width * width + 2 * width * keys + (3 if family == "llama" else 2) * width * hidden
    return sizes["vocab_size"] * width + layers * block


def share_of_peak(args: argparse.Namespace, tokens_per_second: float) -> float:
    """MFU: 6 N + 12 L C T FLOPs a token, over what the maker of the GPU promises."""
    from trivium.recipes.hardware import peak_flops

    width = SIZES[args.family]["width"]
    work = 6 * parameters(args.family, args.layers) + 12 * args.layers * width * args.length
    return work * tokens_per_second / peak_flops(torch.device(args.device), args.precision)[0]


def compare(args: argparse.Namespace, folder: Path) -> None:
    own = [*sys.argv, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    best: dict[str, dict[str, float]] = {}
    for _ in range(args.rounds):
        for engine in ENGINES:
            command = [sys.executable, *own, "--engine", engine]
            run = subprocess.run(command, capture_output=True, text=True, env=environment)
            if run.returncode:
                sys.exit(f"{engine}: {run.stderr}")
            figures = json.loads(run.stdout.splitlines()[-1])
            kept = best.setdefault(engine, figures)
            for name, value in figures.items():
                better = min if name in LOWER_IS_BETTER else max
                kept[name] = better(kept[name], value) if name != "last loss" else value
    print(
        f"{args.family}, {parameters(args.family, args.layers) / 1e6:.0f}M parameters, "
        f"{args.rows} × {args.length} tokens, {args.precision}, {args.device}, "
        f"{args.threads} threads"
    )
    print(f"{'':<12}" + "".join(f"{engine:>16}" for engine in best) + f"{'ratio':>10}")
    mine, theirs = best["trivium"], best["transformers"]
    for name in mine:
        ratio = "" if name == "last loss" else f"{mine[name] / theirs[name]:.2f}×"
        print(f"{name:<12}{mine[name]:>16,.1f}{theirs[name]:>16,.1f}{ratio:>10}")


if __name__ == "__main__":
    main()
