"""How a question is put: the prompt, the form of its answer, and who answers.

A prompt is kept in parts, because models want it differently: a chat model gets turns, a model that
only continues texts gets one text. In both, what all inputs share (instruction, examples) stands
first, so that an engine computes it once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from trivium.errors import TriviumError
from trivium.llmos.messages import Message

REMOTE = "remote:"


class ItemError(TriviumError):
    """This one input cannot be answered; the next one may be."""


@dataclass(frozen=True)
class Example:
    """An input, and the JSON value that answers it."""

    input: str
    output: Any


@dataclass(frozen=True)
class Outcome:
    """An answer. `cut`: it was longer than it might be, and was closed."""

    value: Any
    cut: bool = False


@dataclass(frozen=True)
class Prompt:
    """`shown` are inputs with their answers as they are to be written; `head` and `tail` name input
    and answer in a text: Review: … Sentiment: …"""

    instruction: str
    text: str = ""
    shown: tuple[tuple[str, str], ...] = ()
    head: str = "Text"
    tail: str = "Answer"

    def about(self, text: str) -> "Prompt":
        return replace(self, text=text)

    @property
    def messages(self) -> list[Message]:
        """As turns of a chat."""
        turns = []
        for said, answered in self.shown:
            turns += [self._turn(said), Message("assistant", answered)]
        return [*turns, self._turn(self.text)]

    def _turn(self, text: str) -> Message:
        return Message("user", f"{self.instruction}\n\n{self.head}: {text}")

    @property
    def continued(self) -> str:
        """As one text, which ends where the answer, with a space before it, is to stand."""
        past = "".join(
            f"{self.head}: {said}\n{self.tail}: {answered}\n\n" for said, answered in self.shown
        )
        return f"{self.instruction}\n\n{past}{self.head}: {self.text}\n{self.tail}:"


@dataclass(frozen=True)
class Form:
    """What an answer must be: JSON of `schema`. `lark` says it more narrowly, for a model that can
    be held to a grammar; `check` returns what is wrong with a value, for one that cannot."""

    schema: Mapping[str, Any]
    lark: str | None = None
    check: Callable[[Any], str | None] | None = None


class Asker(Protocol):
    """Answers prompts. Any number of threads may ask; `parallel` at once are worth their while."""

    name: str
    parallel: int
    guided: bool  # follows `Form.lark`, and can be asked for a part of an answer (`write`)

    def ask(self, prompt: Prompt, form: Form, max_tokens: int) -> Outcome:
        """A value that follows the form. Raises ItemError when this input cannot be answered."""
        ...

    def choose(self, prompt: Prompt, labels: Sequence[str], *, calibrated: bool) -> "Choice":
        """Which label fits."""
        ...

    def write(self, prompt: Prompt, begun: str, lark: str, max_tokens: int) -> tuple[str, bool]:
        """What follows `begun`, the beginning of an answer, and whether it was cut."""
        ...

    def tokens(self, text: str) -> int:
        """How long a text is; an estimate where only the model itself could tell."""
        ...

    def room(self, prompt: Prompt, max_tokens: int) -> int:
        """How many tokens of text `prompt`, which has none, may be given."""
        ...

    def cancel(self) -> None:
        """End what is being asked, in any thread, and ask no more."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Choice:
    """`probabilities`, one for each label, if the model could be asked for them."""

    label: str
    probabilities: Mapping[str, float] | None = None


def name_of(model: str) -> str:
    """The name that the asker of a model will have. Raises NotFound where there is no model."""
    if model.startswith(REMOTE):
        return model
    from trivium import hub

    path = hub.find(model).absolute()
    return path.name if path.is_dir() else path.stem


def open_asker(
    name: str,
    *,
    device: str = "auto",
    threads: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
) -> Asker:
    """The model of that name: of `trivium models`, a path, or remote:NAME behind OPENAI_BASE_URL.

    Raises NotFound, or UsageError for one that cannot be used.
    """
    if name.startswith(REMOTE):
        from trivium.llmos.tasks.remote import EndpointAsker

        return EndpointAsker(name.removeprefix(REMOTE), temperature=temperature, seed=seed)
    name_of(name)  # says what is missing before torch, which takes seconds, is loaded
    from trivium.llmos.tasks.local import EngineAsker

    return EngineAsker.load(
        name, device=device, threads=threads, temperature=temperature, seed=seed
    )


def validated(value: Any, form: Form) -> Any:
    """`value`, if it follows the form. Raises ItemError that says where it does not."""
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for

    fault = best_match(validator_for(form.schema)(form.schema).iter_errors(value))
    if fault is not None:
        message = " ".join(fault.message.split())
        where = f"at {fault.json_path}: {message[:150]}"
        raise ItemError(f"the answer does not follow the schema: {where}")
    if form.check is not None and (wrong := form.check(value)) is not None:
        raise ItemError(f"the answer is wrong: {wrong}")
    return value
