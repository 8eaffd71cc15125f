"""Do we choose the token that llama.cpp chooses, on the same GGUF file?

    python bench/agreement.py [--model NAME] [--tokens 2000]

Both read the same real text (of CPython's own documentation); after each of its tokens the one with
the highest logit is compared. Whoever rounds has near ties that fall the other way, so both are
held against full precision too: float32 products of the weights as the file has them. `kept` is the
share of places where full precision has its second choice at least a nat behind, and there the
share on which both agree: what remains of the disagreement once near ties are left out.
"""

import argparse
import os
from pathlib import Path
from pydoc_data.topics import topics

import torch

from trivium import hub
from trivium.evaluate.likelihood import read_scoring
from trivium.language.engine import Engine
from trivium.language.slots import Slot
from trivium.models import load

TEXT = topics["compound"] + topics["assignment"] + topics["exprlists"]
Choices = tuple[torch.Tensor, torch.Tensor]  # ids (T,), and by how many nats each is ahead


def ours(path: Path, precision: str, ids: list[int]) -> Choices:
    engine = Engine(load(path, device="cpu", precision=precision))
    best = [
        logprobs.topk(2, dim=-1)
        for _, logprobs in read_scoring(engine, Slot(), ids[:1], [*ids[1:], 0])
    ]
    values = torch.cat([found.values for found in best])
    return torch.cat([found.indices[:, 0] for found in best]), values[:, 0] - values[:, 1]


def theirs(path: Path, ids: list[int], threads: int) -> Choices:
    from llama_cpp import Llama

    model = Llama(
        str(path),
        n_ctx=len(ids) + 8,
        n_batch=512,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        verbose=False,
    )
    model.eval(ids)
    found = torch.from_numpy(model.scores[: len(ids)]).topk(2, dim=-1)
    return found.indices[:, 0], found.values[:, 0] - found.values[:, 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=hub.DEFAULT)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = hub.find(options.model)
    tokenizer = load(path, device="cpu").tokenizer
    ids = tokenizer.encode(TEXT, wrap=True)[: options.tokens]
    found = {
        "trivium": ours(path, "auto", ids),
        "full precision": ours(path, "float32", ids),
        "llama.cpp": theirs(path, ids, options.threads),
    }
    print(f"{path.name}, {len(ids)} tokens of real text, the same first choice:")
    names = list(found)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            same = (found[one][0] == found[other][0]).float().mean()
            print(f"{one + ' and ' + other:34}{same:8.2%}")
    clear = found["full precision"][1] >= 1
    same = (found["trivium"][0] == found["llama.cpp"][0])[clear].float().mean()
    print(f"trivium and llama.cpp, no near tie {same:8.2%} (kept {clear.float().mean():.0%})")


if __name__ == "__main__":
    main()
