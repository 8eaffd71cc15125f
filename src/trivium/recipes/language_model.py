"""What the recipes of language models share: a text, its tokenizer, rows of tokens, bits per byte.

    text = open_text(run, config.data, vocab_size=4096)
    batches = text.batches(rows=16, length=256, seed=0)
    held = Held(text, length=256)
    …
    held.bits_per_byte(model)
    sample(model, text, "The ")

bits per byte = Σ −log₂ p(token) / Σ bytes of the tokens: models with different tokenizers can be
compared by it, which their perplexities cannot. The end of a text counts as a token of no bytes.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trivium.data import IGNORE, Documents, TokenBatches, documents
from trivium.errors import UsageError
from trivium.language import bpe
from trivium.language.losses import next_token
from trivium.language.tokenizer import Tokenizer
from trivium.recipes.run import Run
from trivium.train import Loss, rank, world_size

TOKENIZER_BYTES = 64 << 20  # of the data are read to make a tokenizer
MEASURED_BYTES = 1 << 20  # are read to know how many bytes a token has
HELD_TOKENS = 32_768  # at most are predicted in an evaluation

LossFunction = Callable[[nn.Module, Mapping[str, Tensor]], Loss]


@dataclass(frozen=True)
class Text:
    """A text in two parts, none of whose documents is in both, and the tokens it is cut into."""

    train: Documents
    held_out: Documents
    tokenizer: Tokenizer

    @property
    def end(self) -> int:
        """The id that ends a text and begins the next."""
        return end_of(self.tokenizer)

    @cached_property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @cached_property
    def bytes_per_token(self) -> float:
        """Measured on the beginning of the training part."""
        return bpe.cost(
            self.tokenizer, _up_to(self.train, MEASURED_BYTES), check=False
        ).bytes_per_token

    @property
    def tokens(self) -> int:
        """Of the training part, about."""
        return max(1, int(self.train.bytes * self.train.share / self.bytes_per_token))

    def batches(self, *, rows: int, length: int, seed: int, **more: Any) -> TokenBatches:
        """Endless micro-batches of this rank."""
        return token_batches(
            self.train,
            self.tokenizer,
            rows=rows,
            length=length,
            seed=seed,
            rank=rank(),
            world=world_size(),
            **more,
        )


def open_text(
    run: Run,
    data: str,
    *,
    vocab_size: int = 4096,
    tokenizer: str = "",
    held_out: float = 0.1,
    special: Sequence[str] = bpe.SPECIAL,
) -> Text:
    """Read a source, hold a part of it out, and make its tokenizer (or take that of a model), with
    `special` tokens.

    A run that goes on uses the tokenizer that lies in its folder.
    """
    whole = documents(data or None)
    train, held = whole.split(held_out)
    run.data(train)
    if (run.folder / "tokenizer.json").is_file():
        made = Tokenizer.from_folder(run.folder)
    elif tokenizer:
        made = bpe.published(_folder_of(tokenizer))
    else:
        made = bpe.train(_up_to(train, TOKENIZER_BYTES), vocab_size, special=special)
    if run.first and not run.config.dry_run:
        made.save(run.folder)
    return Text(train, held, made)


def _folder_of(tokenizer: str) -> Path:
    path = Path(tokenizer).expanduser()
    if path.is_dir():
        return path
    from trivium import hub

    return hub.find(tokenizer)


def _up_to(texts: Iterable[str], size: int) -> Iterable[str]:
    for text in texts:
        yield text
        size -= len(text.encode())
        if size <= 0:
            return


def end_of(tokenizer: Tokenizer) -> int:
    end = tokenizer.eos if tokenizer.eos is not None else tokenizer.bos
    if end is None:
        raise UsageError("the tokenizer has no token that ends a text")
    return end


def token_batches(source: Documents, tokenizer: Tokenizer, **settings: Any) -> TokenBatches:
    return TokenBatches(source, tokenizer.encode_many, end=end_of(tokenizer), **settings)


class Held:
    """Rows of held-out text, and how well a model predicts them."""

    def __init__(
        self, text: Text, *, length: int, tokens: int = HELD_TOKENS, rows: int = 8
    ) -> None:
        batches = token_batches(
            text.held_out, text.tokenizer, rows=rows, length=length, seed=None, epochs=1, ahead=0
        )
        count = max(1, math.ceil(tokens / (rows * length)))
        self.batches = list(islice(batches, count))
        targets = torch.cat([batch["targets"].flatten() for batch in self.batches])
        targets = targets[targets != IGNORE]
        special = text.tokenizer.special_ids
        sizes = {
            int(i): 0 if int(i) in special else len(text.tokenizer.token_bytes(int(i)))
            for i in torch.unique(targets)
        }
        self.tokens = len(targets)
        self.bytes = sum(sizes[int(i)] for i in targets)

    @torch.no_grad()
    def loss(self, model: nn.Module, loss: LossFunction = next_token) -> float:
        """Nats per token that carries loss."""
        device = next(model.parameters()).device
        was, total, weight = model.training, 0.0, 0.0
        model.eval()
        for batch in self.batches:
            found = loss(model, {name: value.to(device) for name, value in batch.items()})
            total, weight = total + float(found.total), weight + float(found.weight)
        model.train(was)
        return total / weight

    def bits_per_byte(self, model: nn.Module, loss: LossFunction = next_token) -> float:
        return self.loss(model, loss) * self.tokens / self.bytes / math.log(2)


@torch.no_grad()
def sample(
    model: Any, tokenizer: Tokenizer, prompt: str, *, tokens: int = 100, seed: int = 0
) -> str:
    """What a causal model writes behind `prompt`, at temperature 0.8."""
    from trivium.language.engine import Engine
    from trivium.language.generation import Request, Token
    from trivium.language.pretrained import LanguageModel
    from trivium.language.sampling import Sampling

    was = model.training
    model.eval()
    engine = Engine(LanguageModel("sample", model, tokenizer, None, "float32"))
    ids = [end_of(tokenizer), *tokenizer.encode(prompt)]
    request = Request(
        ids,
        Sampling(temperature=0.8, top_p=0.95, seed=seed),
        max_tokens=max(1, min(tokens, engine.context - len(ids))),
        speculate=False,
    )
    written = "".join(e.text for e in engine.generate(request) if isinstance(e, Token))
    model.train(was)
    return prompt + written


def micro_batch(tokens: int, length: int, device: torch.device, rows: int = 0) -> tuple[int, int]:
    """(rows, accumulate) for a step of about `tokens` tokens on all ranks: as many rows at a time
    as are fast on the device, unless `rows` are given."""
    room = 4096 if device.type == "cpu" else 32_768
    whole = max(1, round(tokens / length / world_size()))
    rows = min(rows or max(1, room // length), whole)
    return rows, max(1, round(whole / rows))
