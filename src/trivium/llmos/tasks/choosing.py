"""Tasks whose answer is one of several labels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from trivium.errors import UsageError
from trivium.llmos.tasks.asking import Asker, Example, Outcome
from trivium.llmos.tasks.pieces import pieces
from trivium.llmos.tasks.task import Task, listed, record


@dataclass(frozen=True)
class Classify(Task):
    """{"label": …, "probability": …}, and the probability of every label if `probabilities`.

    `calibrated`: see `trivium.llmos.tasks.local`. Of a long text, the probabilities are the mean of
    those of its pieces, weighted by their lengths.
    """

    labels: Sequence[str] = ()
    calibrated: bool = True
    probabilities: bool = False

    name: ClassVar[str] = "classify"
    tail: ClassVar[str] = "Label"
    key: ClassVar[str] = "label"

    def __post_init__(self) -> None:
        labels = tuple(label.strip() for label in self.labels)
        if len(labels) < 2 or not all(labels) or len(set(labels)) < len(labels):
            raise UsageError(f"a task needs two or more different labels, not {list(labels)}")
        object.__setattr__(self, "labels", labels)
        super().__post_init__()

    @property
    def schema(self) -> Mapping[str, Any]:
        return record({self.key: {"type": "string", "enum": list(self.labels)}})

    def run(self, asker: Asker, text: str) -> Outcome:
        room = asker.room(self.prompt, max(map(asker.tokens, self.labels)) + 8)
        parts = pieces(text, room, asker.tokens)
        sums = dict.fromkeys(self.labels, 0.0)
        known = True
        for part in parts:
            choice = asker.choose(self.prompt.about(part), self.labels, calibrated=self.calibrated)
            weight = asker.tokens(part) if len(parts) > 1 else 1
            known = known and choice.probabilities is not None
            for label, p in (choice.probabilities or {choice.label: 1.0}).items():
                sums[label] += weight * p
        best = max(self.labels, key=sums.__getitem__)
        shares = {label: round(sums[label] / sum(sums.values()), 6) for label in self.labels}
        value: dict[str, Any] = {self.key: best, "probability": shares[best] if known else None}
        if self.probabilities:
            value["probabilities"] = shares if known else None
        return Outcome(value)

    def written(self, example: Example) -> str:
        return str(json.loads(super().written(example))[self.key])  # the label alone

    def _says(self) -> str:
        return f"Which label fits the text: {listed(self.labels)}?"


@dataclass(frozen=True)
class Sentiment(Classify):
    """{"sentiment": …, "probability": …}"""

    labels: Sequence[str] = ("positive", "negative", "neutral")

    name: ClassVar[str] = "sentiment"
    tail: ClassVar[str] = "Sentiment"
    key: ClassVar[str] = "sentiment"

    def _says(self) -> str:
        return f"Is the sentiment of the text {listed(self.labels)}?"
