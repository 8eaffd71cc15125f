"""What `run` and `chat` share: a conversation with all that answers it."""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from trivium import files
from trivium.cli import local
from trivium.cli.approval import Approver
from trivium.cli.render import Screen
from trivium.cli.settings import Settings
from trivium.errors import NotFound, TriviumError, UsageError
from trivium.llmos import conversation, kernel
from trivium.llmos.chat_model import ChatModel
from trivium.llmos.conversation import Conversation
from trivium.llmos.gateway import Gateway, decide, never_ask
from trivium.llmos.messages import Answer, Event, Failure, Finish, Message, ModelEvent, Usage
from trivium.llmos.tools import Tool
from trivium.llmos.workspace import Workspace

REMOTE = "remote:"
SILENCE = 300.0  # seconds that an endpoint may say nothing


def open_model(name: str, settings: Settings) -> ChatModel:
    """The chat model of that name: `remote:NAME` behind OPENAI_BASE_URL, or one on this machine."""
    if name.startswith(REMOTE):
        return _open_remote(name, settings)
    from trivium import hub

    hub.find(name)  # says what is missing before torch, which takes seconds, is loaded
    with local.needed(", or use a server: -m remote:NAME"):
        from trivium.llmos.local import CALM, LocalModel
    given = {"temperature": settings.temperature, "seed": settings.seed}
    return LocalModel.load(
        name,
        device=settings.device or "auto",
        threads=settings.threads,
        sampling=replace(CALM, **_given(given)),
        **_given({"max_tokens": settings.max_tokens}),
    )


def _open_remote(name: str, settings: Settings) -> ChatModel:
    from trivium.llmos.remote import RemoteModel

    model = RemoteModel(
        name.removeprefix(REMOTE),
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
        timeout=min(SILENCE, settings.max_seconds),
    )
    if settings.offline and not model.on_this_machine:
        raise UsageError(f"{name} is reached over the network, which --offline forbids")
    return model


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def open_tools(workspace: Workspace) -> tuple[Tool, ...]:
    """The tools of a session over the files of `workspace`."""
    from trivium.llmos.builtin import builtin_tools

    return builtin_tools(workspace)


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
        found = self._latest() if settings.continue_ else None
        self.enter(found or self.new(_anywhere(settings.model)))
        try:
            if found is None:
                self.model = open_model(settings.model, settings)
            else:
                self._resume(found)
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

    def _latest(self) -> Conversation:
        return Conversation.open(conversation.latest(self.workspace.root))

    def _resume(self, found: Conversation) -> None:
        """Go on with the model and the instructions that are given now, else with those before."""
        if self.settings.model_given:
            self.change_model(self.settings.model)
        else:
            try:
                self.model = open_model(found.model, self.settings)
            except NotFound as error:
                raise NotFound(f"{error} (-m NAME goes on with another model)") from error
        if self.settings.system is not None:
            found.change(system=self.settings.system)

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
        except Exception as error:
            with contextlib.suppress(TriviumError, OSError):  # the disk may be what failed
                self.conversation.record(Failure("model", str(error) or type(error).__name__))
            with contextlib.suppress(OSError):  # or a pipe that nobody reads any more
                self.screen.end_line()
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
        for event in self._session.model.stream(messages, tools):
            if isinstance(event, Finish):
                used = event.usage
                self._session.usage += used
                self._session.context_used = used.prompt_tokens + used.completion_tokens
            yield event
