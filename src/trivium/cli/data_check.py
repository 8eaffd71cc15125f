"""What `data check` counts: every record read once, broken ones too, and how long the items are."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trivium.cli.progress import progress
from trivium.data.conversation import Conversation, Conversations, Preference, Preferences
from trivium.data.corpus import Corpus
from trivium.data.textfiles import Blocks
from trivium.errors import UsageError

if TYPE_CHECKING:
    from trivium.data.batches import Render
    from trivium.data.encoding import EncodeMany

POINTS = {"shortest": 0, "median": 50, "90 %": 90, "99 %": 99, "longest": 100}


@dataclass
class Counts:
    """unit: what `sizes` are counted in; learnt: tokens that carry loss."""

    unit: str
    items: int = 0
    sizes: list[int] = field(default_factory=list)
    learnt: int = 0
    shapes: Counter[str] = field(default_factory=Counter)

    def percentiles(self) -> dict[str, int]:
        ordered = sorted(self.sizes) or [0]
        last = len(ordered) - 1
        return {name: ordered[round(last * point / 100)] for name, point in POINTS.items()}


def counted(
    corpus: Corpus[Any], encode_many: "EncodeMany | None", render: "Render | None"
) -> Counts:
    """Read the whole corpus. Without `encode_many`, sizes are in characters."""
    counts = Counts("tokens" if encode_many else "characters")
    blocks, open_text = corpus.blocks, 0
    with progress(corpus.name, corpus.bytes) as tell:
        for number in range(len(blocks)):
            found = corpus.read(number)
            if isinstance(corpus, Conversations | Preferences):
                for item in found:
                    _count(counts, corpus, item, render)
            elif found:
                texts = [item.item for item in found]
                sizes = map(len, encode_many(texts) if encode_many else texts)
                for item, size in zip(found, sizes, strict=True):
                    open_text = size + (0 if item.starts else open_text)
                    if item.ends:
                        counts.sizes.append(open_text)
                        counts.items += 1
            done = min(corpus.bytes, (number + 1) * corpus.bytes // len(blocks))
            tell(done, f"{counts.items:,} {corpus.kind}, {corpus.broken:,} broken")
    counts.learnt = counts.learnt or sum(counts.sizes)
    if isinstance(corpus, Conversations | Preferences):
        counts.shapes = corpus.shapes
    elif isinstance(blocks, Blocks):
        counts.shapes["text files"] = sum(not file.records for file in blocks.files)
        counts.shapes["files of records"] = sum(file.records for file in blocks.files)
    return counts


def _count(counts: Counts, corpus: Corpus[Any], found: Any, render: "Render | None") -> None:
    """One conversation, or all replies of a preference."""
    item: Conversation | Preference = found.item
    if isinstance(item, Conversation):
        samples = [item.messages]
    else:
        samples = [[*item.prompt, *response] for response in item.responses]
    try:
        for messages in samples:
            if render is None:
                counts.sizes.append(sum(len(str(message["content"])) for message in messages))
                continue
            ids, learnt = render(messages, item.tools)
            counts.sizes.append(len(ids))
            counts.learnt += sum(learnt)
    except UsageError as error:
        corpus.leave_out(found.place, error)
        return
    counts.items += 1
