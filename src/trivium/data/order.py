"""In which order the items of a corpus are read: drawn from a seed, the same for ever, and found
again from a few numbers.

    lanes   for texts: the blocks of a corpus are dealt out to up to 32 lanes, which are read side
            by side, a row from each in turn. So neighbours in a batch lie far apart in the files,
            and yet a long document is read from its beginning to its end.
    pools   for samples that are used whole: some 2 MiB of blocks from all over the corpus are read
            at once, and their items shuffled together.

The order of the blocks, and that of the items, is drawn anew for every epoch. It depends on the
data and the seed, and on nothing else: not on how many processes there are, nor on where reading
began.
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from trivium.data.corpus import Corpus, Found
from trivium.errors import UsageError

LANES, BLOCKS_OF_A_LANE = 32, 16
POOL = 2 << 20  # bytes
PATIENCE = 8  # epochs in which a lane may find nothing
Item = TypeVar("Item")


@dataclass
class Cursor:
    """A place in a lane: what is read next. `block` counts the lane's blocks of this epoch, `item`
    those of the block in their drawn order, and `token` those of the item."""

    epoch: int = 0
    block: int = 0
    item: int = 0
    token: int = 0

    def numbers(self) -> list[int]:
        return list(astuple(self))


def drawn(count: int, *seed: int | None) -> NDArray[np.int64]:
    """A permutation of `count` numbers that `seed` decides; the identity if it begins with None.

    It sorts the raw output of a bit generator, which numpy promises to keep; it does not promise to
    keep its permutations.
    """
    if seed[0] is None:
        return np.arange(count)
    numbers = [number % 2**64 for number in seed if number is not None]
    return np.random.PCG64(numbers).random_raw(count).argsort(kind="stable")


@lru_cache(maxsize=4)
def _blocks(count: int, seed: int | None, epoch: int) -> NDArray[np.int64]:
    return drawn(count, seed, epoch)


def lanes_of(corpus: Corpus[Any]) -> int:
    """How many lanes: a power of two that leaves each enough blocks."""
    lanes, blocks = 1, len(corpus.blocks) * corpus.share
    while lanes < LANES and blocks >= 2 * lanes * BLOCKS_OF_A_LANE:
        lanes *= 2
    return lanes


class Order(NamedTuple, Generic[Item]):
    """The order of a corpus. seed None: that of the files. epochs None: again and again."""

    corpus: Corpus[Item]
    seed: int | None
    epochs: int | None

    def lane(self, number: int, lanes: int, start: Cursor) -> Iterator[tuple[Cursor, Found[Item]]]:
        """The items of every `lanes`-th block from `start` on, each with its place."""
        corpus, seed = self.corpus, self.seed
        epoch, first, item, empty = start.epoch, start.block, start.item, 0
        while self.epochs is None or epoch < self.epochs:
            own = _blocks(len(corpus.blocks), seed, epoch)[number::lanes]
            empty += 1
            for block in range(first, len(own)):
                items = corpus.read(int(own[block]))
                within = drawn(len(items), seed, epoch, int(own[block]))
                for at in range(item, len(items)):
                    empty = 0
                    yield Cursor(epoch, block, at), items[within[at]]
                item = 0
            epoch, first, item = epoch + 1, 0, 0
            if empty > PATIENCE:
                raise UsageError(f"{corpus.name} holds nothing to learn from")

    def pools(self, epoch: int, pool: int) -> Iterator[tuple[int, int, list[Found[Item]]]]:
        """(epoch, pool, its items in their drawn order) from a pool on."""
        corpus, seed = self.corpus, self.seed
        many = max(1, POOL // max(corpus.blocks.size, 1))
        count, empty = -(-len(corpus.blocks) // many), 0
        while self.epochs is None or epoch < self.epochs:
            order = _blocks(len(corpus.blocks), seed, epoch)
            empty += 1
            for number in range(pool, count):
                blocks = order[number * many : (number + 1) * many]
                items = [found for block in blocks for found in corpus.read(int(block))]
                if items:
                    empty = 0
                    within = drawn(len(items), seed, epoch, number)
                    yield epoch, number, [items[i] for i in within]
            epoch, pool = epoch + 1, 0
            if empty > 1:  # and of the first epoch, a part may have been read before
                raise UsageError(f"{corpus.name} holds nothing to learn from")
