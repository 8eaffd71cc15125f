"""What the recipes that learn from ranked replies share: the data, in batches."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from torch import Tensor

from trivium.data import Preferences, preferences
from trivium.data.replies import PreferenceBatches
from trivium.recipes import assistant as shared
from trivium.recipes import exercises
from trivium.recipes.assistant import Assistant
from trivium.recipes.run import Run
from trivium.train import rank, world_size

MADE = 2000  # rankings, where no data are given
HELD = 256  # held-out prompts that are looked at


def open_preferences(
    run: Run, data: str, assistant: Assistant, seed: int, held_out: float
) -> tuple[Preferences, Preferences]:
    """The part to learn from, which is recorded, and the one that is held out."""
    if data:
        whole = preferences(data)
    else:
        largest = shared.LARGEST if assistant.tiny else 99
        made = exercises.exercises(MADE, seed, largest=largest)
        records = exercises.preferences(made, seed)
        whole = preferences(records, name="rankings of answers to exercises, made on the spot")
    train, held = whole.split(held_out)
    run.data(train)
    return train, held


def ranked_batches(
    part: Preferences, assistant: Assistant, config: Any, *, rows: int, seed: int
) -> PreferenceBatches:
    """Without end, `rows` prompts each."""
    return PreferenceBatches(
        part,
        assistant.render,
        rows=rows,
        length=_length(config, assistant),
        filler=assistant.filler,
        seed=seed,
        too_long=config.too_long,
        rank=rank(),
        world=world_size(),
    )


def held_batches(part: Preferences, assistant: Assistant, config: Any, *, rows: int) -> list[Any]:
    """The first held-out prompts, in the order of the files."""
    batches = PreferenceBatches(
        part,
        assistant.render,
        rows=rows,
        length=_length(config, assistant),
        filler=assistant.filler,
        seed=None,
        epochs=1,
        too_long="drop",
        ahead=0,
    )
    return list(islice(batches, max(1, HELD // rows)))


def tokens_of(held: Sequence[Mapping[str, Tensor]], batch: int) -> int:
    """Of a step of `batch` prompts with their replies, by what held-out ones have."""
    tokens = sum(int((b["ends"] + 1).sum()) for b in held)
    prompts = sum(int(b["groups"].max()) + 1 for b in held)
    return max(1, round(batch * tokens / max(prompts, 1)))


def _length(config: Any, assistant: Assistant) -> int:
    return min(config.context or 1024, int(assistant.model.config.context))


def micro(batch: int, rows: int) -> tuple[int, int]:
    """(rows, accumulate) of a step of `batch` prompts on all ranks."""
    whole = max(1, round(batch / world_size()))
    rows = min(rows, whole)
    return rows, max(1, round(whole / rows))
