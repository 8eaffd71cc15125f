"""`chat`: talk with a model, turn by turn; every word is kept as it is said."""

import sys
from collections.abc import Callable, Mapping

import click

from trivium.cli.attachments import check_prompt
from trivium.cli.lines import QUOTE, PipedLines, TerminalLines
from trivium.cli.render import Screen
from trivium.cli.session import Session
from trivium.cli.settings import Settings, session_options
from trivium.errors import TriviumError, UsageError
from trivium.llmos import conversation
from trivium.llmos.conversation import Conversation, Turn
from trivium.llmos.messages import Answer, Failure, Message

NEARLY_FULL = 0.8  # of the context; from there on every turn says how much is left


@click.command()
@session_options
@click.pass_context
def chat(context: click.Context, settings: Settings) -> None:
    """Talk with a model that has tools, turn by turn.

    /help lists what can be done beside talking. Ctrl-C stops an answer, Ctrl-D leaves. Messages of
    several lines stand between \"\"\" and \"\"\", or are broken with Alt-Enter. When stdin is not a
    terminal, each of its lines is a message.
    """
    screen = Screen()
    with Session(settings, screen) as session:
        talk = Chat(session, screen)
        context.exit(talk.on_terminal() if sys.stdin.isatty() else talk.on_pipe())


class Leave(Exception):
    """The person is done."""


class Chat:
    def __init__(self, session: Session, screen: Screen) -> None:
        self.session, self.screen = session, screen

    def on_terminal(self) -> int:
        lines = TerminalLines([*COMMANDS])
        self._greet()
        while True:
            try:
                line = lines.read()
                if line is None:
                    return 0
                self.handle(line)
            except Leave:
                return 0
            except KeyboardInterrupt:
                self.screen.note("(Ctrl-D or /bye leaves)")
            except TriviumError as error:
                self.screen.note(f"trivium: {error}")
                if self._is_unanswered():
                    self.screen.note("/retry asks again, /undo takes it back, /clear begins anew")

    def on_pipe(self) -> int:
        """The exit code is that of the last failure; a message that fails does not end the rest."""
        code = 0
        for line in PipedLines():
            try:
                end = self.handle(line)
            except Leave:
                break
            except TriviumError as error:
                self.screen.note(f"trivium: {error}")
                code = error.exit_code
                continue
            if isinstance(end, Failure):
                if end.kind == "cancelled":
                    return 130
                code = 1
        return 3 if self.session.approver.unasked else code

    def handle(self, line: str) -> Answer | Failure | None:
        """Do a command, or answer a message."""
        if not line.strip():
            return None
        word, _, rest = line.strip().partition(" ")
        if word.startswith("/") and word[1:].isalpha():  # "/etc/hosts" is not a command
            if word not in COMMANDS:
                raise UsageError(f"there is no command {word}; /help lists them")
            return COMMANDS[word][0](self, rest.strip())
        return self._say(Turn(Message("user", check_prompt(line))))

    def _say(self, turn: Turn) -> Answer | Failure:
        end = self.session.answer(turn.message, sources=turn.sources)
        if isinstance(end, Failure):
            self.screen.note(end.message)
        used, limit = self.session.context_used, self._context
        if limit and used >= NEARLY_FULL * limit:
            self.screen.note(
                f"context: {used:,} of {limit:,} tokens are used; /clear starts a new conversation"
            )
        return end

    @property
    def _context(self) -> int | None:
        limit = getattr(self.session.model, "context", None)
        return limit if isinstance(limit, int) else None

    def _greet(self) -> None:
        session = self.session
        self.screen.note(f"{session.model.name} in {session.workspace.root}; /help")
        if session.settings.tools and session.workspace.note:
            self.screen.note(session.workspace.note)
        if session.conversation.turns:
            self._introduce(session.conversation)

    def _introduce(self, talk: Conversation) -> None:
        self.screen.note(f"{talk.id}: {talk.title} (turns so far: {len(talk.turns)})")
        if self._is_unanswered():
            self.screen.note("the last turn was broken off; /retry asks again")

    def _is_unanswered(self) -> bool:
        turns = self.session.conversation.turns
        return bool(turns) and not turns[-1].answered

    def help(self, argument: str) -> None:
        rows = [(f"{name} {arguments}", text) for name, (_, arguments, text) in COMMANDS.items()]
        rows += [(f"{QUOTE} … {QUOTE}", "a message of several lines; Alt-Enter breaks a line too")]
        self.screen.note("\n".join(f"{left:<16}{right}" for left, right in rows))

    def model(self, argument: str) -> None:
        if argument:
            self.session.change_model(argument)
        limit = f", context {self._context:,} tokens" if self._context else ""
        self.screen.note(f"{self.session.model.name}{limit}")

    def models(self, argument: str) -> None:
        from trivium import hub

        names = [model.name for model in hub.installed()]
        available = getattr(self.session.model, "available", None)  # of a remote endpoint
        names += [f"remote:{name}" for name in available()] if available else []
        self.screen.note("\n".join(names) or "no model is here; `trivium pull` fetches one")

    def tools(self, argument: str) -> None:
        rows = [(tool.name, tool.description.split("\n")[0]) for tool in self.session.gateway.tools]
        self.screen.note("\n".join(f"{name:<16}{text}" for name, text in rows) or "no tools")

    def system(self, argument: str) -> None:
        if argument:
            self.session.conversation.change(system="" if argument == "none" else argument)
        self.screen.note(self.session.conversation.system or "no instructions")

    def usage(self, argument: str) -> None:
        usage, used, limit = self.session.usage, self.session.context_used, self._context
        left = (
            f"; context: {used:,} of {limit:,} tokens used, {limit - used:,} left" if limit else ""
        )
        self.screen.note(
            f"last turn: {usage.prompt_tokens:,} tokens read ({usage.cached_tokens:,} of them from "
            f"the cache), {usage.completion_tokens:,} written{left}"
        )

    def undo(self, argument: str) -> None:
        if argument in ("files", "files force"):
            self.screen.note(self.session.workspace.undo(force=argument.endswith("force")))
            return
        self.screen.note(f"taken back: {self._last().message.text}")

    def retry(self, argument: str) -> Answer | Failure:
        return self._say(self._last())

    def _last(self) -> Turn:
        turn = self.session.conversation.undo()
        if turn is None:
            raise UsageError("nothing has been said yet")
        return turn

    def clear(self, argument: str) -> None:
        old = self.session.conversation
        new = self.session.new(old.model)
        new.system = old.system
        self.session.enter(new)
        self.screen.note(
            "a new conversation" + (f"; /load {old.id} goes back" if old.turns else "")
        )

    def save(self, argument: str) -> None:
        talk = self.session.conversation
        if argument:
            talk.save_as(argument)
        elif not talk.turns:
            raise UsageError("nothing has been said yet that could be saved")
        self.screen.note(f"kept in {talk.path}; /load {argument or talk.id} opens it")

    def load(self, argument: str) -> None:
        if not argument:
            found = conversation.stored()[:10]
            rows = [f"{summary.id}  {summary.title}" for summary in found]
            self.screen.note("\n".join(rows) or "no conversation is stored yet")
            return
        self.session.load(conversation.find(argument))
        self._introduce(self.session.conversation)

    def bye(self, argument: str) -> None:
        raise Leave


COMMANDS: Mapping[str, tuple[Callable[[Chat, str], Answer | Failure | None], str, str]] = {
    "/help": (Chat.help, "", "this list"),
    "/model": (Chat.model, "[NAME]", "show the model, or go on with another"),
    "/models": (Chat.models, "", "list the models that are here"),
    "/tools": (Chat.tools, "", "list the tools"),
    "/system": (Chat.system, "[TEXT]", "show or replace the instructions (none: remove them)"),
    "/usage": (Chat.usage, "", "tokens of the last turn, and what is left of the context"),
    "/undo": (Chat.undo, "[files]", "take back the last turn, or change of files (files force)"),
    "/retry": (Chat.retry, "", "ask the last message again"),
    "/clear": (Chat.clear, "", "start a new conversation"),
    "/save": (Chat.save, "[NAME]", "give this conversation a name (it is always kept)"),
    "/load": (Chat.load, "[NAME]", "list the conversations, or open one by name or id"),
    "/bye": (Chat.bye, "", "leave (or Ctrl-D)"),
}
