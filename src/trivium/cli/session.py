"""What `run` and `chat` share: their options, and a conversation with all that answers it."""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import click
from click.core import ParameterSource

from trivium import files
from trivium.cli import options
from trivium.cli.approval import Approver
from trivium.cli.render import Screen
from trivium.errors import TriviumError, UsageError
from trivium.llmos import conversation, kernel
from trivium.llmos.chat_model import ChatModel
from trivium.llmos.conversation import Conversation
from trivium.llmos.gateway import Gateway, decide, never_ask
from trivium.llmos.kernel import Budget
from trivium.llmos.messages import Answer, Event, Failure, Finish, Message, ModelEvent, Usage
from trivium.llmos.tools import Tool
from trivium.llmos.workspace import Workspace

REMOTE = "remote:"


@dataclass(frozen=True)
class Settings:
    """The options of a session, under their names on the command line."""

    model: str
    model_given: bool
    system: str | None
    workspace: Path
    tools: bool
    yes: bool
    max_steps: int
    max_tokens: int | None
    max_seconds: float
    temperature: float | None
    seed: int | None
    device: str | None
    threads: int | None
    offline: bool
    continue_: bool

    @property
    def budget(self) -> Budget:
        tokens = Budget().tokens if self.max_tokens is None else self.max_tokens
        return Budget(self.max_steps, tokens, self.max_seconds)


def session_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `Settings`; the command gets the value that they make as `settings`."""
    default = Budget()
    decorators = (
        options.model,
        options.system,
        options.continue_,
        click.option(
            "-w",
            "--workspace",
            type=click.Path(path_type=Path, exists=True, file_okay=False),
            default=".",
            metavar="DIR",
            help="The folder whose files the tools may use (default: this one).",
        ),
        click.option("--tools/--no-tools", default=True, help="Let the model use tools (default)."),
        click.option("-y", "--yes", is_flag=True, help="Allow every action without asking."),
        click.option(
            "--max-steps",
            type=click.IntRange(1),
            default=default.steps,
            show_default=True,
            help="Model calls a request may take.",
        ),
        click.option(
            "--max-tokens",
            type=click.IntRange(1),
            help=f"Tokens a request may generate (default: {default.tokens}).",
        ),
        click.option(
            "--max-seconds",
            type=click.FloatRange(0, min_open=True),
            default=default.seconds,
            show_default=True,
            help="Time a request may take.",
        ),
        click.option(
            "--temperature",
            type=click.FloatRange(0),
            help="0 always takes the likeliest word; more varies (default: the model's own).",
        ),
        options.seed,
        options.device,
        options.threads,
        options.offline,
    )

    @functools.wraps(command)
    @click.pass_context
    def collecting(context: click.Context, /, **values: Any) -> Any:
        given = context.get_parameter_source("model") is ParameterSource.COMMANDLINE
        own = {f.name: values.pop(f.name) for f in fields(Settings) if f.name in values}
        return command(settings=Settings(model_given=given, **own), **values)

    for decorate in reversed(decorators):
        collecting = decorate(collecting)
    return collecting


def open_model(name: str, settings: Settings) -> ChatModel:
    """The chat model of that name: `remote:NAME` behind OPENAI_BASE_URL, or one on this machine."""
    if name.startswith(REMOTE):
        return _open_remote(name, settings)
    from trivium import hub

    hub.find(name)  # says what is missing before torch, which takes seconds, is loaded
    try:
        from trivium.language.sampling import Sampling
        from trivium.llmos.local import LocalModel
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("trivium"):
            raise
        raise UsageError(
            f"a model on this machine needs {error.name}: pip install 'trivium[local]', "
            "or use a server: -m remote:NAME"
        ) from error
    given = {"temperature": settings.temperature, "seed": settings.seed}
    return LocalModel.load(
        name,
        device=settings.device or "auto",
        threads=settings.threads,
        sampling=Sampling(**_given(given)),
        **_given({"max_tokens": settings.max_tokens}),
    )


def _open_remote(name: str, settings: Settings) -> ChatModel:
    from trivium.llmos.remote import RemoteModel

    model = RemoteModel(
        name.removeprefix(REMOTE),
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
    )
    if settings.offline and not model.on_this_machine:
        raise UsageError(f"{name} is reached over the network, which --offline forbids")
    return model


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def open_tools(workspace: Workspace) -> tuple[Tool, ...]:
    """The default tools over the files of `workspace`."""
    from trivium.llmos.calculator import calculate
    from trivium.llmos.code_tools import code_tools
    from trivium.llmos.file_tools import file_tools

    return (calculate, *code_tools(workspace), *file_tools(workspace))


class Session:
    """A conversation, the model that answers it, and the gateway to its tools.

    `usage` is that of the last turn; `context_used` counts the tokens that the model read and wrote
    in its last call.
    """

    conversation: Conversation
    gateway: Gateway

    def __init__(self, settings: Settings, screen: Screen) -> None:
        self.settings, self.screen = settings, screen
        self.approver = Approver(screen)
        self.usage = Usage()
        self.context_used = 0
        self.workspace = Workspace(settings.workspace)
        self._opened = contextlib.ExitStack()
        self.enter(self.latest() if settings.continue_ else self.new(settings.model))
        try:
            self.model = open_model(self.conversation.model, settings)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._opened.close()

    def new(self, model: str) -> Conversation:
        return Conversation(model=model, system=self.settings.system, workspace=self.workspace.root)

    def latest(self) -> Conversation:
        """The last conversation in the workspace, with the model and instructions now given."""
        found = Conversation.open(conversation.latest(self.workspace.root))
        model = self.settings.model if self.settings.model_given else None
        if model is not None or self.settings.system is not None:
            found.change(model=model and _anywhere(model), system=self.settings.system)
        return found

    def enter(self, conversation: Conversation) -> None:
        """Go on in `conversation`, with tools that know nothing of the one before."""
        with contextlib.ExitStack() as opening:
            opening.enter_context(conversation)
            gateway = Gateway(
                open_tools(self.workspace) if self.settings.tools else (),
                approve=self.approver,
                policy=never_ask if self.settings.yes else decide,
                log=files.state_home() / "tools.jsonl",
            )
            gateway.saw(conversation.sources)
            opened = opening.pop_all()
        self._opened.close()
        self._opened, self.conversation, self.gateway = opened, conversation, gateway
        self.context_used = 0

    def load(self, path: Path) -> None:
        """Go on in the conversation stored at `path`, with its own model."""
        if path == self.conversation.path:
            return
        found = Conversation.open(path)
        try:
            if found.model != self.conversation.model:
                self.model = open_model(found.model, self.settings)
            self.enter(found)
        except BaseException:
            found.close()
            raise

    def change_model(self, name: str) -> None:
        self.model = open_model(name, self.settings)
        self.conversation.change(model=_anywhere(name))

    def answer(
        self, message: Message, *, sources: frozenset[str] = frozenset(), title: str = ""
    ) -> Answer | Failure:
        """Run one turn, shown and written down as it happens. Ctrl-C ends it with a Failure."""
        self.usage = Usage()
        self.gateway.saw(sources)
        self.conversation.say(message, sources=sources, title=title)
        end: Answer | Failure = Failure("model", "the model ended without an answer")
        turn = kernel.run(
            _Metered(self), self.conversation.messages, self.gateway, self.settings.budget
        )
        try:
            with contextlib.closing(cast(Generator[Event, None, None], turn)) as events:
                for event in events:
                    self.conversation.record(event)
                    self.screen.show(event)
                    if isinstance(event, Answer | Failure):
                        end = event
        except KeyboardInterrupt:
            end = Failure("cancelled", "stopped")
            self.conversation.record(end)
            self.screen.show(end)
        except TriviumError as error:
            self.screen.end_line()
            with contextlib.suppress(TriviumError):  # the disk may be what failed
                self.conversation.record(Failure("model", str(error)))
            raise
        return end


def _anywhere(model: str) -> str:
    """The name of a model as it is understood in any folder: a path becomes absolute."""
    return str(Path(model).absolute()) if "/" in model and Path(model).exists() else model


class _Metered:
    """The model of a session, which notes how much of the context is used."""

    def __init__(self, session: Session) -> None:
        self.name = session.model.name
        self._session = session

    def stream(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> Iterator[ModelEvent]:
        stream = self._session.model.stream(messages, tools)
        with contextlib.closing(cast(Generator[ModelEvent, None, None], stream)):
            for event in stream:
                if isinstance(event, Finish):
                    self._session.usage += event.usage
                    self._session.context_used = (
                        event.usage.prompt_tokens + event.usage.completion_tokens
                    )
                yield event
