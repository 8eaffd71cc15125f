"""What is hidden, that it is drawn alike when training resumes, and filling in."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.checkpoint import save
from trivium.data import IGNORE
from trivium.errors import UsageError
from trivium.language.losses import masked_token
from trivium.language.masking import MaskedBatches, fill, hide, load_masked, mask_id
from trivium.language.pretrained import LanguageModel, load_pretrained
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer, TransformerConfig

SPECIAL = ("<|endoftext|>", "[MASK]")
TEXT = "the cat sat on the mat and the dog lay on the rug "


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT * 5], 290, special=SPECIAL)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_shares_of_what_is_hidden() -> None:
    """15 %, of which 80, 10 and 10 %; within four standard deviations of 200,000 draws."""
    ids = torch.randint(10, 1000, (200, 1000), generator=generator(1))
    shown, targets = hide(ids, mask=3, vocab_size=1000, generator=generator())
    chosen = targets != IGNORE
    assert torch.equal(targets[chosen], ids[chosen]) and torch.equal(shown[~chosen], ids[~chosen])
    masked, same = shown == 3, shown == ids
    count = int(chosen.sum())
    for share, of, wanted in (
        (count, ids.numel(), 0.15),
        (int((chosen & masked).sum()), count, 0.8 + 0.1 / 1000),
        (int((chosen & same).sum()), count, 0.1 + 0.1 / 1000),
    ):
        assert abs(share / of - wanted) < 4 * (wanted * (1 - wanted) / of) ** 0.5
    others = shown[chosen & ~masked & ~same]
    assert others.unique().numel() > 900  # any token


def test_markup_and_padding_are_never_hidden(tokenizer: Tokenizer) -> None:
    ids = torch.randint(2, 290, (8, 64), generator=generator())
    ids[:, ::5] = 0  # the end of a text
    segments = torch.zeros_like(ids)
    segments[:, 50:] = -1
    made = MaskedBatches([], tokenizer, rate=0.9).hidden({"ids": ids, "segments": segments}, 0)
    assert (made["targets"][:, ::5] == IGNORE).all() and (made["targets"][:, 50:] == IGNORE).all()
    assert torch.equal(made["ids"][:, 50:], ids[:, 50:]) and made["segments"] is segments
    assert (made["targets"] != IGNORE).any()


class Numbered:
    """Batches that can be resumed, as those of trivium.data."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world, self.at = rank, world, 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while self.at < 12:
            number, self.at = self.at + self.rank, self.at + self.world
            yield {"ids": torch.randint(2, 290, (2, 40), generator=generator(number))}

    def state(self) -> dict[str, Any]:
        return {"at": self.at}

    def load(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_what_is_hidden_is_drawn_alike_after_a_stop_and_on_other_ranks(
    tokenizer: Tokenizer,
) -> None:
    whole = list(MaskedBatches(Numbered(), tokenizer, seed=5))
    assert not same(whole[0], whole[1])
    assert not same(whole[0], next(iter(MaskedBatches(Numbered(), tokenizer, seed=6))))
    first = MaskedBatches(Numbered(), tokenizer, seed=5)
    begun = list(islice(first, 4))
    state = first.state()
    ranks = [MaskedBatches(Numbered(rank, 2), tokenizer, seed=5) for rank in (0, 1)]
    rest = []
    for made in ranks:
        made.load(state)
        rest.append(list(made))
    resumed = begun + [batch for pair in zip(*rest, strict=True) for batch in pair]
    assert len(resumed) == len(whole)
    assert all(same(a, b) for a, b in zip(resumed, whole, strict=True))


def test_a_tokenizer_without_a_mask() -> None:
    plain = Tokenizer.train([TEXT], 270)
    with pytest.raises(UsageError, match=r"\[MASK\]"):
        mask_id(plain)
    with pytest.raises(UsageError, match="share"):
        MaskedBatches([], plain, rate=1.5)


@pytest.fixture(scope="module")
def trained(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model that was trained to fill in one sentence."""
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size,
        context=32,
        width=32,
        layers=1,
        heads=2,
        hidden=64,
        norm="layer",
        block="post",
        stem="bert",
        token_types=1,
        mlp="gelu",
        position="learned",
        causal=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        transform="bert",
    )
    model = Transformer(config)
    ids = torch.tensor([tokenizer.encode(TEXT.strip())] * 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = MaskedBatches([], tokenizer, rate=0.3)
    for step in range(120):
        loss = masked_token(model, batches.hidden({"ids": ids}, step))
        optimizer.zero_grad()
        (loss.total / loss.weight).backward()
        optimizer.step()
    folder: Path = tmp_path_factory.mktemp("bert")
    save(folder, model, "transformer", config)
    tokenizer.save(folder)
    return folder


def test_it_learns_to_fill_in(trained: Path) -> None:
    model = load_masked(trained, device="cpu")
    hidden = TEXT.strip().replace("cat", "[MASK]").replace("rug", "[MASK]")
    first, second = fill(model, hidden, top=3)
    assert (first[0].token, second[0].token) == ("cat", "rug")
    assert first[0].p > 0.5 and len(first) == 3 and first[0].p >= first[1].p >= first[2].p


def test_a_text_in_which_nothing_can_be_filled_in(trained: Path) -> None:
    model = load_masked(trained, device="cpu")
    with pytest.raises(UsageError, match=r"write \[MASK\]"):
        fill(model, "the cat sat")
    with pytest.raises(UsageError, match="reads 32"):
        fill(model, "cat " * 40 + "[MASK]")
    with pytest.raises(UsageError, match="encoder"):
        load_pretrained(trained, precision="float32")


def test_an_encoder_of_a_run_makes_embeddings(trained: Path) -> None:
    from trivium.language.embed import Embedder

    vectors = Embedder.load(trained, device="cpu").embed(["the cat", "the dog lay"])
    assert vectors.shape == (2, 32) and vectors.isfinite().all()


def test_a_model_that_predicts_does_not_fill_in(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, width=32, layers=1, hidden=32)
    save(tmp_path, Transformer(config), "transformer", config)
    tokenizer.save(tmp_path)
    with pytest.raises(UsageError, match="predicts"):
        load_masked(tmp_path)


def test_the_head_sees_what_was_hidden_only(tokenizer: Tokenizer) -> None:
    """The transform, too, is computed for the targets alone."""
    seen: list[int] = []
    model = LanguageModel("m", None, tokenizer, None, "float32")  # only to name the tokenizer
    body = Transformer(
        TransformerConfig(vocab_size=290, width=32, layers=1, hidden=32, transform="bert")
    )
    body.transform.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[0]))
    ids = torch.randint(2, 290, (4, 32), generator=generator())
    batch = MaskedBatches([], model.tokenizer).hidden({"ids": ids}, 0)
    loss = masked_token(body, batch)
    assert seen == [int((batch["targets"] != IGNORE).sum())] == [int(loss.weight)]
    assert 0 < seen[0] < ids.numel() / 2
