"""Two parts of training beside the plain way: the loss of a large vocabulary, and packed rows.

    python bench/training_parts.py [--tokens 2048] [--width 576] [--vocab 49152] [--bfloat16]

loss     forward and backward of the head: `language.losses.cross_entropy`, which makes logits for
         some rows at a time, beside PyTorch's cross-entropy over the logits of all tokens. Each is
         run in a process of its own; memory is its peak above what stood before.
packing  forward and backward of attention among packed texts: `nn.segments`, beside one causal row
         (in which texts see one another) and beside PyTorch's attention behind a mask of (B, T, T).

A ratio is plain to ours: above 1, ours is faster or smaller.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trivium.language.losses import cross_entropy
from trivium.nn.attention import attend
from trivium.nn.segments import Segments


def best(step: Callable[[], object], times: int = 3) -> float:
    step()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return min(found)


def loss(ours: bool, tokens: int, width: int, vocab: int, half: bool) -> tuple[float, float]:
    """Seconds and megabytes of one step."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = torch.randn(tokens, width, requires_grad=True)
    weight = (torch.randn(vocab, width) / width**0.5).requires_grad_()
    targets = torch.randint(vocab, (tokens,))
    cross_entropy(x[:16], weight, targets[:16]).backward()  # the gradients have their place
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            if ours:
                total = cross_entropy(x, weight, targets)
            else:
                total = F.cross_entropy(F.linear(x, weight).float(), targets, reduction="sum")
        total.backward()

    seconds = best(step)
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def apart(*job: object) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, megabytes = pool.apply(loss, job)
    return seconds, megabytes


def texts(rows: int, length: int, mean: int) -> Tensor:
    """Segments (B, T) of texts whose lengths are drawn exponentially."""
    rng = torch.Generator().manual_seed(0)
    numbers = torch.empty(rows, length, dtype=torch.long)
    for row in numbers:
        at = number = 0
        while at < length:
            size = 1 + int(torch.empty(1).exponential_(1 / mean, generator=rng))
            row[at : at + size] = number
            at, number = at + size, number + 1
    return numbers


def packing(mean: int) -> tuple[float, float, float]:
    """Seconds among texts, of one row each, and behind a mask."""
    numbers = texts(4, 1024, mean)
    q, k, v = (torch.randn(4, 1024, 12, 64).transpose(1, 2).requires_grad_() for _ in range(3))
    mask = (numbers[:, :, None] == numbers[:, None]).tril_()[:, None]
    ways: list[Callable[[], Tensor]] = [
        lambda: Segments(numbers).attend(q, k, v, causal=True),
        lambda: attend(q, k, v, causal=True),
        lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
    ]
    ours, row, behind = (best(lambda w=way: w().sum().backward()) for way in ways)  # type: ignore[misc]
    return ours, row, behind


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--bfloat16", action="store_true", help="under autocast")
    given = parser.parse_args()
    torch.set_num_threads(1)
    job = (given.tokens, given.width, given.vocab, given.bfloat16)
    (our_time, our_size), (time_, size) = apart(True, *job), apart(False, *job)
    print(
        f"loss of {given.tokens} tokens, {given.vocab} words: {our_time:.2f} s, {our_size:.0f} MB; "
        f"plain {time_:.2f} s, {size:.0f} MB; ratio {time_ / our_time:.2f} in time, "
        f"{size / our_size:.1f} in memory"
    )
    for mean in (20, 100, 300, 1000):
        ours, row, behind = packing(mean)
        print(
            f"4 × 1,024 tokens in texts of {mean}: {ours * 1e3:.0f} ms; ratio "
            f"{row / ours:.2f} to one row, {behind / ours:.2f} to a mask"
        )


if __name__ == "__main__":
    main()
