"""Better words for a task, and better examples, found by the model that has to do it.

The model reads examples and says what instruction would lead from the inputs to the outputs
(Automatic Prompt Engineer: Zhou et al. 2022); once there is a best prompt, it is shown what that
one gets wrong. Then examples to be shown are drawn, of several numbers. Every prompt is scored by
how many texts of a development half it gets right; only one that gets more right than the best so
far takes its place, so the result is never worse there than the prompt it began with. What it is
worth is told by the held-out half, which nothing was chosen by.

The examples of a task are in three parts that a seed draws: those that may be shown, those that
prompts are compared on (together the development half), and those held out.
"""

import hashlib
import json
import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trivium.errors import UsageError
from trivium.files import append_json, read_json_lines
from trivium.llmos.tasks.asking import Asker, Example, Form, ItemError, Outcome, Prompt
from trivium.llmos.tasks.batch import Question, answers
from trivium.llmos.tasks.choosing import Classify
from trivium.llmos.tasks.task import Task, record
from trivium.llmos.tasks.writing import Fill

MOST_LABELS = 20  # outputs; more of them are written, not chosen from
SHOWABLE = 1 / 3  # of the development half
READ, WRONG = 6, 4  # examples that the model reads to propose, and mistakes
LONGEST = 400  # characters of one of them, and of an instruction
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Parts:
    shown: tuple[Example, ...]
    development: tuple[Example, ...]
    held_out: tuple[Example, ...]

    @classmethod
    def of(cls, examples: Sequence[Example], seed: int) -> "Parts":
        """Raises UsageError if there are too few."""
        if len(examples) < 8:
            raise UsageError(f"{len(examples)} examples are too few to compare prompts: give 8")
        order = list(examples)
        random.Random(seed).shuffle(order)
        half = len(order) // 2
        shown = max(1, round(half * SHOWABLE))
        return cls(tuple(order[:shown]), tuple(order[shown:half]), tuple(order[half:]))


def task_for(examples: Sequence[Example], labels: Sequence[str] = ()) -> Task:
    """Choosing a label, where the outputs are a few texts that come again and again; else writing
    an answer."""
    outputs = [example.output for example in examples]
    if not all(isinstance(output, str) and output.strip() for output in outputs):
        raise UsageError("an output must be a text: a label, or an answer")
    found = sorted({output.strip() for output in outputs})
    if labels:
        if unknown := sorted(set(found) - set(labels)):
            raise UsageError(f"the outputs hold other labels than those given: {unknown[:5]}")
        return Classify(labels=labels)
    if 1 < len(found) <= min(MOST_LABELS, len(outputs) // 2):
        return Classify(labels=found)
    answer = {"answer": {"type": "string", "minLength": 1}}
    return Fill(form=record(answer), max_tokens=128)


def said(task: Task, outcome: Outcome | ItemError) -> str:
    """What a task's answer comes down to; "" where there is none."""
    if isinstance(outcome, ItemError):
        return ""
    key = task.key if isinstance(task, Classify) else "answer"
    return str(outcome.value.get(key, ""))


def is_right(answer: str, expected: Any) -> bool:
    return _plain(answer) == _plain(str(expected)) != ""


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.strip().strip(".!?。！？\"'").split())


@dataclass(frozen=True)
class Scored:
    """A task with what is said and shown, and which examples of a part it got right."""

    task: Task
    right: tuple[bool, ...]
    origin: str

    @property
    def count(self) -> int:
        return sum(self.right)


class Journal:
    """What was measured and proposed, so that a search that was stopped goes on."""

    def __init__(self, path: Path, search: str) -> None:
        self._path, self._search = path, search
        self._known: dict[str, Any] = {}
        if path.is_file():
            for entry in read_json_lines(path, skip_broken=True):
                if entry.get("search") == search:
                    self._known[str(entry.get("key"))] = entry.get("value")

    def __call__(self, key: str, compute: Callable[[], Any]) -> Any:
        """The value that is known under a key, or what `compute` gives, kept (JSON)."""
        if key not in self._known:
            value = compute()
            append_json(self._path, {"search": self._search, "key": key, "value": value})
            self._known[key] = value
        return self._known[key]


class Search:
    """See the module. Made with the task as it is at first."""

    def __init__(
        self, task: Task, asker: Asker, parts: Parts, journal: Journal, tell: Tell, seed: int
    ) -> None:
        self.parts, self.best = parts, Scored(task, (), "as it was")
        self._asker, self._journal, self._tell, self._seed = asker, journal, tell, seed
        self.tried: list[Scored] = []

    def run(self, *, rounds: int, proposals: int, shots: Sequence[int], draws: int) -> Scored:
        """The best prompt. rounds of proposals; draws of each number of shots."""
        self.best = self.score(self.best.task, self.parts.development, self.best.origin)
        self.tried = [self.best]
        self._tell(f"as it was: {self.best.count} of {len(self.best.right)} right")
        for number in range(rounds):
            wrong = self._wrong()
            for place in range(proposals):
                words = self._proposed(number, place, wrong)
                if words:
                    self._try(replace(self.best.task, instruction=words), f"instruction: {words}")
        for count in shots:
            for draw in range(draws):
                shown = self._drawn(count, draw)
                if shown:
                    self._try(replace(self.best.task, examples=shown), f"{len(shown)} examples")
        return self.best

    def _try(self, task: Task, origin: str) -> None:
        found = self.score(task, self.parts.development, origin)
        self.tried.append(found)
        better = found.count > self.best.count
        self._tell(f"{'+' if better else ' '} {found.count} right: {origin}")
        if better:
            self.best = found

    def score(self, task: Task, part: Sequence[Example], origin: str = "") -> Scored:
        """Which examples of a part a task gets right; of none, if its prompt does not fit."""
        key = f"{task.fingerprint}/{_digest(part)}"
        right = self._journal(key, lambda: [*self._answered(task, part)])
        return Scored(task, tuple(bool(one) for one in right), origin)

    def _answered(self, task: Task, part: Sequence[Example]) -> Iterator[int]:
        questions = (Question(i, example.input, 0) for i, example in enumerate(part))
        try:
            for done, example in zip(answers(task, self._asker, questions), part, strict=True):
                yield int(is_right(said(task, done.outcome), example.output))
        except UsageError as error:  # the examples leave no room for a text
            if not task.examples:
                raise
            self._tell(f"  left out: {error}")
            yield from [0] * len(part)

    def _wrong(self) -> list[Example]:
        pairs = zip(self.best.right, self.parts.development, strict=True)
        return [example for right, example in pairs if not right]

    def _proposed(self, number: int, place: int, wrong: Sequence[Example]) -> str:
        """An instruction in the model's own words; "" if it found none."""
        rng = random.Random(f"{self._seed}/{number}/{place}")
        pool = self.parts.shown
        read = rng.sample(pool, min(READ, len(pool)))
        hard = rng.sample(wrong, min(WRONG, len(wrong))) if number else []
        prompt = proposal(read, hard, self.best.task.instruction if number else "")
        form = Form(record({"instruction": {"type": "string", "minLength": 8}}))

        def ask() -> str:
            try:
                return str(self._asker.ask(prompt, form, 96).value["instruction"])
            except ItemError:
                return ""

        words = " ".join(str(self._journal(f"proposal/{_digest(prompt)}", ask)).split())
        return words if len(words) <= LONGEST else ""

    def _drawn(self, count: int, draw: int) -> tuple[Example, ...]:
        """Examples to be shown, of as many different outputs as there are."""
        rng = random.Random(f"{self._seed}/shots/{count}/{draw}")
        return balanced(self.parts.shown, count, rng)

    def by_shots(self, task: Task, shots: Sequence[int]) -> list[tuple[int, Scored]]:
        """The held-out half with so many examples shown, each set within the next."""
        order = balanced(self.parts.shown, max(shots, default=0), random.Random(self._seed))
        counts = sorted({min(count, len(order)) for count in (0, *shots)})
        return [
            (count, self.score(replace(task, examples=order[:count]), self.parts.held_out))
            for count in counts
        ]


def proposal(read: Sequence[Example], wrong: Sequence[Example], before: str) -> Prompt:
    """The question what instruction leads from inputs to outputs."""

    def listed(examples: Sequence[Example]) -> str:
        return "\n".join(
            f"Input: {_short(e.input)}\nOutput: {_short(str(e.output))}" for e in examples
        )

    asked = (
        "Somebody was given an instruction, and wrote the right output for each input. "
        "What was the instruction? One or two sentences that hold for any input, as JSON."
    )
    text = listed(read)
    if wrong:
        text += f"\n\nThese were done wrongly so far; the right outputs are:\n{listed(wrong)}"
    if before:
        text += f"\n\nThe instruction so far, which is not good enough: {before}"
    return Prompt(asked, text, (), "Examples", "Instruction")


def balanced(pool: Sequence[Example], count: int, rng: random.Random) -> tuple[Example, ...]:
    """`count` of the pool, or all, with the different outputs by turns."""
    groups: dict[str, list[Example]] = {}
    for example in rng.sample(pool, len(pool)):
        groups.setdefault(str(example.output), []).append(example)
    turns = [groups[name] for name in rng.sample(sorted(groups), len(groups))]
    chosen: list[Example] = []
    while len(chosen) < min(count, len(pool)):
        for group in turns:
            if group and len(chosen) < count:
                chosen.append(group.pop())
    return tuple(chosen)


def gain(before: Scored, after: Scored) -> tuple[float, float, float]:
    """How much larger the share that is right has become on the same examples, and its 95 %
    interval: that of a difference of paired shares (Wald, from the pairs that differ)."""
    count = len(before.right)
    pairs = list(zip(before.right, after.right, strict=True))
    up = sum(new and not old for old, new in pairs)
    down = sum(old and not new for old, new in pairs)
    change = (up - down) / count
    spread = 1.96 * max(up + down - (up - down) ** 2 / count, 0) ** 0.5 / count
    return change, change - spread, change + spread


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode(errors="replace")).hexdigest()[:16]


def search_name(task: Task, model: str, parts: Parts, seed: int) -> str:
    """Tells a search from others, whose measurements are of no use to it."""
    return _digest(json.dumps([task.fingerprint, model, _digest(parts), seed]))
