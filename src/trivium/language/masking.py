"""Masked language models (BERT: Devlin et al. 2018): words are hidden, and guessed from both sides.

    targets    15 % of the tokens, drawn for each batch anew
    ids        of those 80 % become the mask, 10 % any token, 10 % stay as they are

The loss is `losses.masked_token`. B rows, T tokens.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trivium.data import IGNORE
from trivium.errors import UsageError
from trivium.language.pretrained import LanguageModel, load_encoder
from trivium.language.tokenizer import Tokenizer

RATE = 0.15
MASKED, RANDOM = 0.8, 0.1  # shares of what is hidden; the rest stays
MASKS = ("[MASK]", "<mask>", "<|mask|>")  # what tokenizers call the mask


def mask_id(tokenizer: Tokenizer) -> int:
    """The id of the mask. Raises UsageError for a tokenizer that has none."""
    for name in MASKS:
        if name in tokenizer.control_tokens:
            return tokenizer.control_tokens[name]
    raise UsageError(f"the tokenizer has no token for what is hidden: {', '.join(MASKS)}")


def hide(
    ids: Tensor,
    *,
    mask: int,
    vocab_size: int,
    generator: torch.Generator,
    keep: Tensor | None = None,
    rate: float = RATE,
) -> tuple[Tensor, Tensor]:
    """ids (B, T) → what the model is shown, and the targets, IGNORE where nothing was hidden.

    keep: (B, T) bool, True where a token must not be hidden, as padding and markup
    """
    chosen = torch.rand(ids.shape, generator=generator) < rate
    fate = torch.rand(ids.shape, generator=generator)
    other = torch.randint(vocab_size, ids.shape, generator=generator)
    if keep is not None:
        chosen &= ~keep
    shown = torch.where(chosen & (fate < MASKED), mask, ids)
    shown = torch.where(chosen & (fate >= 1 - RANDOM), other, shown)
    return shown, torch.where(chosen, ids, IGNORE)


class MaskedBatches:
    """Batches whose tokens are hidden. What is drawn depends on the seed and on the number of the
    micro-batch alone, among those of all ranks: so training resumes to the bit.

    batches: of dicts with ids (B, T), and segments (B, T) if they are packed, −1 at padding
    """

    def __init__(
        self,
        batches: Any,
        tokenizer: Tokenizer,
        *,
        seed: int = 0,
        rate: float = RATE,
    ) -> None:
        if not 0 < rate < 1:
            raise UsageError(f"the share of tokens that are hidden is between 0 and 1, not {rate}")
        self.batches, self._rate, self._seed = batches, rate, seed
        self._mask, self._vocab_size = mask_id(tokenizer), tokenizer.vocab_size
        self._markup = torch.tensor(sorted(tokenizer.special_ids))
        self._rank, self._world = getattr(batches, "rank", 0), getattr(batches, "world", 1)
        self._number = 0  # of micro-batches, of all ranks

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.batches:
            number, self._number = self._number + self._rank, self._number + self._world
            yield self.hidden(batch, number)

    def hidden(self, batch: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """The batch as micro-batch `number`."""
        digest = hashlib.sha256(f"{self._seed}/{number}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        keep = torch.isin(batch["ids"], self._markup)
        if "segments" in batch:
            keep |= batch["segments"] < 0
        ids, targets = hide(
            batch["ids"],
            mask=self._mask,
            vocab_size=self._vocab_size,
            generator=generator,
            keep=keep,
            rate=self._rate,
        )
        return {**batch, "ids": ids, "targets": targets}

    def state(self) -> dict[str, Any]:
        return {"batches": self.batches.state(), "number": self._number}

    def load(self, state: Mapping[str, Any]) -> None:
        self.batches.load(state["batches"])
        self._number = state["number"]


# -- use ------------------------------------------------------------------------------------------


class Guess(NamedTuple):
    token: str  # as it is written, ##s within a word
    p: float


def load_masked(path: Path, *, device: str = "auto") -> LanguageModel:
    """A masked language model, of a Hugging Face folder or a run, in float32.

    Raises NotFound and UsageError for whatever is wrong with it.
    """
    loaded = load_encoder(path, device=device)
    if loaded.model.config.causal:
        raise UsageError(
            f"{path} predicts what follows: `trivium complete`; here one that fills in"
        )
    mask_id(loaded.tokenizer)
    return loaded


@torch.no_grad()
def fill(language_model: LanguageModel, text: str, *, top: int = 5) -> list[list[Guess]]:
    """What may stand in each place of `text` that is marked as hidden ([MASK]): the likeliest
    tokens. Each place is guessed with the others hidden."""
    tokenizer, model = language_model.tokenizer, language_model.model
    mask = mask_id(tokenizer)
    ids = _encoded(tokenizer, text, mask)
    places = [i for i, id in enumerate(ids) if id == mask]
    if not places:
        raise UsageError(f"nothing is hidden in the text: write {_name(tokenizer, mask)}")
    if len(ids) > model.config.context:
        raise UsageError(f"the text has {len(ids)} tokens; the model reads {model.config.context}")
    features = model.features(torch.tensor([ids], device=language_model.device))[0, places]
    p = model.logits(features).float().softmax(-1)
    found = p.topk(min(top, p.shape[-1]))
    return [
        [
            Guess(tokenizer.decode([id], skip_special=False).strip(), value)
            for id, value in zip(row, values, strict=True)
        ]
        for row, values in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def _name(tokenizer: Tokenizer, mask: int) -> str:
    return next(name for name, id in tokenizer.control_tokens.items() if id == mask)


def _encoded(tokenizer: Tokenizer, text: str, mask: int) -> list[int]:
    """The ids of the text, with the mask in its places, and what goes around a text."""
    ids: list[int] = []
    *pieces, last = text.split(_name(tokenizer, mask))
    for piece in pieces:  # the space before a word is a part of it, where spaces count at all
        ids += [*tokenizer.encode(piece.removesuffix(" ")), mask]
    ids += tokenizer.encode(last)
    around = tokenizer.encode("", wrap=True)
    return [*around[:1], *ids, *around[1:]]
