"""Our engine beside what a user would pick instead, on the same GGUF file and the same threads.

    python bench/language.py [--threads 2] [--rounds 3] [--busy]

Peers: transformers (bfloat16, its own loader) and llama-cpp-python, where installed. Each engine
runs in a process of its own, one after the other, `rounds` times in turn; the best round counts,
because a shared machine only ever makes things slower. `--busy` keeps one core occupied by another
process. No engine drafts tokens from what the text repeats, since that would measure the text.

Rows: load (s), prefill of 512 tokens (tok/s), decode at batch 1 (tok/s), decode at batch 8 (tok/s),
time to first token of a second turn behind 1,000 tokens (ms), peak resident memory (MB).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from trivium import hub

TEXT = topics["compound"] + topics["assignment"] + topics["exprlists"]
PREFILL, DECODE, TURN = 512, 128, 1000
LOWER_IS_BETTER = ("load s", "second turn ms", "peak MB")


def measure(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def ours(path: Path, threads: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(threads)
    from trivium.language.batching import Batcher
    from trivium.language.engine import Engine
    from trivium.language.generation import End, Request
    from trivium.models import load

    start = time.perf_counter()
    engine = Engine(load(path))
    loaded = time.perf_counter() - start
    ids = engine.tokenizer.encode(TEXT)
    never = dict.fromkeys(engine.tokenizer.stop_ids, -1e9)

    def generate(prompt: list[int], count: int, source: Any = engine) -> End:
        events = source.generate(
            Request(prompt, max_tokens=count, logit_bias=never, speculate=False)
        )
        return list(events)[-1]

    generate(ids[:64], 8)
    prefill = PREFILL / measure(lambda: generate(ids[3 : 3 + PREFILL], 1))
    decode = DECODE / (
        measure(lambda: generate(ids[7:71], DECODE + 1)) - measure(lambda: generate(ids[8:72], 1))
    )
    turn = ids[11 : 11 + TURN]
    generate(turn, 1)
    second = measure(lambda: generate([*turn, *ids[20:40]], 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    from concurrent.futures import ThreadPoolExecutor

    with Batcher(engine) as batcher, ThreadPoolExecutor(8) as pool:
        jobs = [ids[50 * i : 50 * i + 16] for i in range(8)]
        seconds = measure(lambda: list(pool.map(lambda p: generate(p, DECODE, batcher), jobs)))
    return {
        "load s": loaded,
        "prefill tok/s": prefill,
        "decode tok/s": decode,
        "batch 8 tok/s": 8 * DECODE / seconds,
        "second turn ms": second * 1000,
        "peak MB": peak,
    }


def theirs_transformers(path: Path, threads: int) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    start = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.bfloat16
    )
    loaded = time.perf_counter() - start
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])

    def generate(prompt: Any, count: int) -> Any:
        return model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )

    generate(ids[:, :64], 4)
    prefill = PREFILL / measure(lambda: generate(ids[:, 3 : 3 + PREFILL], 1))
    short = 48
    decode = short / (
        measure(lambda: generate(ids[:, 7:71], short + 1))
        - measure(lambda: generate(ids[:, 8:72], 1))
    )
    rows = torch.cat([ids[:, 50 * i : 50 * i + 16] for i in range(8)])
    batch = 8 * short / measure(lambda: generate(rows, short))
    second = measure(lambda: generate(ids[:, 11 : 11 + TURN + 20], 1))  # it keeps no cache
    return {
        "load s": loaded,
        "prefill tok/s": prefill,
        "decode tok/s": decode,
        "batch 8 tok/s": batch,
        "second turn ms": second * 1000,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def theirs_llama_cpp(path: Path, threads: int) -> dict[str, float]:
    from llama_cpp import Llama

    start = time.perf_counter()
    model = Llama(
        str(path),
        n_ctx=2048,
        n_batch=512,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    loaded = time.perf_counter() - start
    ids = model.tokenize(TEXT.encode(), add_bos=False)

    def generate(prompt: list[int], count: int, *, reset: bool = True) -> None:
        for made, _ in enumerate(model.generate(prompt, temp=0.0, reset=reset), start=1):
            if made == count:
                return

    generate(ids[:64], 4)
    prefill = PREFILL / measure(lambda: generate(ids[3 : 3 + PREFILL], 1))
    decode = DECODE / (
        measure(lambda: generate(ids[7:71], DECODE + 1)) - measure(lambda: generate(ids[8:72], 1))
    )
    turn = ids[11 : 11 + TURN]
    generate(turn, 1)
    second = measure(lambda: generate([*turn, *ids[20:40]], 1))
    return {
        "load s": loaded,
        "prefill tok/s": prefill,
        "decode tok/s": decode,
        "second turn ms": second * 1000,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


ENGINES = {
    "trivium": ours,
    "transformers": theirs_transformers,
    "llama.cpp": theirs_llama_cpp,
}


def in_a_process(engine: str, path: Path, threads: int) -> dict[str, float] | None:
    command = [sys.executable, __file__, "--engine", engine, "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    run = subprocess.run(
        [*command, "--model", str(path)], capture_output=True, text=True, env=environment
    )
    if run.returncode:
        print(f"{engine}: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(run.stdout.splitlines()[-1])


def better(row: str, a: float, b: float) -> float:
    return min(a, b) if row in LOWER_IS_BETTER else max(a, b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", action="store_true", help="keep one core busy meanwhile")
    parser.add_argument("--model", default=hub.DEFAULT)
    parser.add_argument("--engine", choices=list(ENGINES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    path = hub.find(given.model)
    if given.engine:
        print(json.dumps(ENGINES[given.engine](path, given.threads)))
        return
    load = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if given.busy else None
    best: dict[str, dict[str, float]] = {}
    try:
        for _ in range(given.rounds):
            for engine in ENGINES:
                if (found := in_a_process(engine, path, given.threads)) is not None:
                    kept = best.setdefault(engine, found)
                    best[engine] = {row: better(row, kept[row], found[row]) for row in found}
    finally:
        if load is not None:
            load.kill()
            load.wait()
    size = path.stat().st_size / 1e6
    print(f"{path.name}, {size:.0f} MB, {given.threads} threads" + (", a core busy" * given.busy))
    print(f"{'':16}" + "".join(f"{engine:>22}" for engine in best))
    for row, value in best["trivium"].items():
        line = f"{row:16}{value:22.2f}"
        for found in list(best.values())[1:]:
            if row not in found:
                line += f"{'-':>22}"
                continue
            ratio = found[row] / value if row in LOWER_IS_BETTER else value / found[row]
            line += f"{found[row]:12.2f} ({ratio:5.2f}×)"
        print(line)
    print("In brackets: how many times better ours is.")


if __name__ == "__main__":
    main()
