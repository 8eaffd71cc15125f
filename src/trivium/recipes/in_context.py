"""What models that read a text from both sides are good for: words filled in, and vectors.

Vectors of passages are judged by a task that needs no labels: of passages from held-out texts,
find for the first half of each its second half, among all second halves. A half's vector is the
mean over its tokens; what all vectors have in common is taken off.

N passages, T tokens of a half, C width, V vocabulary.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trivium.data import IGNORE
from trivium.language.losses import head_loss
from trivium.language.tokenizer import Tokenizer
from trivium.recipes.language_model import Text
from trivium.recipes.run import Run

HALF = 64  # tokens
PASSAGES = 256
SHOWN, AROUND, GUESSES = 8, 12, 3  # of the table of words filled in: rows, tokens on each side

Encode = Callable[[Tensor], Tensor]


def halves(text: Text, length: int = HALF, most: int = PASSAGES) -> tuple[Tensor, Tensor]:
    """Passages of held-out texts that do not overlap, in two halves (N, length)."""
    rows = []
    for ids in text.tokenizer.encode_many(list(text.held_out)):
        whole = torch.tensor(ids, dtype=torch.long)
        if len(whole) >= 2 * length:
            rows += list(whole.unfold(0, 2 * length, 2 * length))
    if not rows:
        return (torch.empty(0, length, dtype=torch.long),) * 2
    passages = torch.stack(rows[:: max(1, len(rows) // most)][:most])
    return passages[:, :length], passages[:, length:]


def share_found(first: Tensor, second: Tensor) -> float:
    """Of vectors (N, C) of first halves, how many are nearest to that of their second half."""
    first, second = (F.normalize(x - x.mean(0), dim=-1) for x in (first, second))
    nearest = (first @ second.t()).argmax(-1)
    return float((nearest == torch.arange(len(first), device=first.device)).float().mean())


@torch.no_grad()
def judge_vectors(model: Any, text: Text, encode: Encode) -> dict[str, float]:
    """Halves found by the vectors of `encode`, from ids (N, T) to (N, T, C), and by the mean of the
    embedded tokens, which know no context."""
    first, second = halves(text, min(HALF, model.config.context))
    if len(first) < 2:
        return {}
    was, device = model.training, next(model.parameters()).device
    model.eval()

    def means(read: Encode) -> tuple[Tensor, Tensor]:
        sides = [
            torch.cat([read(part.to(device)).float().mean(1) for part in torch.split(side, 32)])
            for side in (first, second)
        ]
        return sides[0], sides[1]

    found = {
        "halves found in context": share_found(*means(encode)),
        "halves found without context": share_found(*means(model.embedding.rows)),
        "halves found by chance": 1 / len(first),
    }
    model.train(was)
    return found


@torch.no_grad()
def guessed(
    model: Any,
    batches: Iterable[Mapping[str, Tensor]],
    asked: Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]],
) -> tuple[float, float]:
    """The mean loss of what is hidden in batches, and the share that is guessed.

    asked: from a batch to features (N, C) and the targets (N,) that would be right
    """
    was, device = model.training, next(model.parameters()).device
    model.eval()
    total = count = right = 0.0
    for batch in batches:
        features, targets = asked({name: value.to(device) for name, value in batch.items()})
        total += float(head_loss(model, features, targets))
        count += float((targets != IGNORE).sum())
        right += float((model.logits(features).argmax(-1) == targets).sum())
    model.train(was)
    return total / count, right / count


@torch.no_grad()
def show_filled_in(
    run: Run, model: Any, text: Text, guess: Callable[[Tensor, int], Tensor]
) -> None:
    """A table of words that are hidden in held-out texts, and what the model thinks they are.

    guess: from ids (1, T) and the place that is hidden to logits (V,)
    """
    was, device = model.training, next(model.parameters()).device
    model.eval()
    rows = []
    for ids in halves(text, min(2 * AROUND, model.config.context), SHOWN)[0]:
        place = len(ids) // 2
        best = guess(ids[None].to(device), place).topk(GUESSES).indices.tolist()
        before, after = ids[:place].tolist(), ids[place + 1 :].tolist()
        rows.append(
            [
                f"…{_shown(text.tokenizer, before)} ▁▁▁ {_shown(text.tokenizer, after)}…",
                _shown(text.tokenizer, [int(ids[place])]),
                ", ".join(_shown(text.tokenizer, [id]) for id in best),
            ]
        )
    model.train(was)
    if rows:
        run.tables.append(("Words filled in", ["text", "hidden", "guesses"], rows))


def _shown(tokenizer: Tokenizer, ids: list[int]) -> str:
    return " ".join(tokenizer.decode(ids, skip_special=False).split()) or "(space)"
