"""A model's own chat template: from messages to the text, and the tokens, that it was trained on.

A template is a Jinja program that comes with the weights, so it is a stranger's code: it runs in
Jinja's sandbox, in the environment that transformers gives it, with bounds on loops, on the size of
strings and on the output.

What messages say must stay text: nobody may write <|im_end|> into a message and so end it.
`ChatTemplate.encode` therefore disguises, before the template runs, each character that could begin
a control token; so a control token in the result was written by the template itself. The one
exception is the assistant's own turn, which the model wrote: there, soft control tokens (<think>)
stay as they are, and so does markup that the template looks for.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from trivium.errors import TriviumError, UsageError
from trivium.files import read_json
from trivium.language.sandboxed_jinja import Program
from trivium.language.tokenizer import Tokenizer
from trivium.language.tokenizer_json import read_text

_PROBE = "trivium_probe"
_DUMMY_TOOL = {
    "type": "function",
    "function": {
        "name": _PROBE,
        "description": _PROBE,
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string", "description": _PROBE}},
            "required": ["text"],
        },
    },
}
# Stand-ins are syllables of the Yi script that the messages do not hold. They are letters because
# repr(), which a template may use, escapes private-use characters.
_STAND_INS = [chr(code) for code in range(0xA000, 0xA48D)]

_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
_SOFT_MARKUP = re.compile(r"</?\w+>|\[/?\w+\]")

Message = Mapping[str, Any]


class ChatTemplate:
    """Renders messages (OpenAI's JSON) by a Jinja template.

    source: the template, or several by name ("default", "tool_use")
    bos_token, eos_token: texts that the template may write
    """

    def __init__(
        self, source: str | Mapping[str, str], *, bos_token: str = "", eos_token: str = ""
    ) -> None:
        sources = {"default": source} if isinstance(source, str) else source
        default = sources.get("default", next(iter(sources.values())))
        self._default = Program(default)
        self._tool_use = Program(sources["tool_use"]) if "tool_use" in sources else self._default
        self.named = {**sources, "default": default}
        self.sources = tuple(sources.values())
        self._markup = {m for text in self.sources for m in _SOFT_MARKUP.findall(text)}
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self.eos_token = eos_token

    @classmethod
    def from_folder(cls, folder: Path) -> "ChatTemplate | None":
        """The template of a Hugging Face folder; None if it has none."""
        config = read_json(folder / "tokenizer_config.json", optional=True)
        special = read_json(folder / "special_tokens_map.json", optional=True)
        source = config.get("chat_template")
        named = folder / "chat_template.jinja"
        if named.is_file():
            source = {"default": read_text(named)}
            extra = sorted((folder / "additional_chat_templates").glob("*.jinja"))
            source |= {path.stem: read_text(path) for path in extra}
        if not source:
            return None
        if isinstance(source, list):
            source = {e.get("name"): e.get("template") for e in source if isinstance(e, dict)}
        sources = source if isinstance(source, dict) else {"default": source}
        if not sources or not all(isinstance(text, str) for text in sources.values()):
            raise UsageError(f"{folder}: the chat template must be text, or a list of named texts")
        tokens = {}
        for name in ("bos_token", "eos_token"):
            token = config.get(name) or special.get(name) or ""
            tokens[name] = token["content"] if isinstance(token, dict) else token
        return cls(sources, **tokens)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "ChatTemplate | None":
        """The template of a GGUF file; None if it has none."""
        source = metadata.get("tokenizer.chat_template")
        if not source:
            return None
        sources = {"default": source}
        for name in metadata.get("tokenizer.chat_templates", ()):
            sources[name] = metadata[f"tokenizer.chat_template.{name}"]
        tokens = metadata.get("tokenizer.ggml.tokens", ())

        def token(role: str) -> str:
            id = metadata.get(f"tokenizer.ggml.{role}_token_id")
            return str(tokens[id]) if id is not None and id < len(tokens) else ""

        return cls(sources, bos_token=token("bos"), eos_token=token("eos"))

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """The text that the model reads, as transformers' apply_chat_template has it.

        extra: further variables of the template (enable_thinking, documents, …)

        Raises UsageError where the template refuses the messages or fails.
        """
        return self._render(messages, tools, add_generation_prompt, extra)

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        extra: Mapping[str, Any],
        kept: Iterable[str] = (),
        marks: tuple[str, str] = ("", ""),
    ) -> str:
        program = self._tool_use if tools else self._default
        variables: dict[str, Any] = {"documents": None, **self._tokens, **_plain(extra)}
        variables["messages"] = self._prepared(_plain(messages))
        variables["tools"] = _plain(tools) if tools else None
        variables["add_generation_prompt"] = add_generation_prompt
        return program.render(variables, kept, marks)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> list[int]:
        """The tokens of `render`, in which every control token comes from the template.

        Equal to encode(render(…), special=True) where messages and tools spell none.
        """
        spelling = Spelling(self, tokenizer, [messages, tools, extra])
        text = spelling.text(messages, tools, add_generation_prompt, **extra)
        return tokenizer.encode_marked(text, spelling.disguise)

    @cached_property
    def generation_prompt(self) -> str:
        """What add_generation_prompt puts at the end: how a turn of the assistant begins."""
        messages = [{"role": "user", "content": "Hi"}]
        try:
            before, behind = (self.render(messages, None, on) for on in (False, True))
        except TriviumError:
            return ""
        return behind.removeprefix(before) if behind.startswith(before) else ""

    @cached_property
    def supports_tools(self) -> bool:
        """Whether the template shows tools to the model."""
        messages = [{"role": "user", "content": "Hi"}]
        try:
            return _PROBE in self.render(messages, [_DUMMY_TOOL])
        except TriviumError:
            return False

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template reads content given as a list of parts."""
        parts = [{"type": "text", "text": _PROBE}]
        variables = {"messages": [{"role": "user", "content": parts}], "tools": None}
        try:
            text = self._default.render({**self._tokens, **variables, "documents": None})
        except TriviumError:
            return False
        return _PROBE in text and f"'{_PROBE}'" not in text and f'"{_PROBE}"' not in text

    def _prepared(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages as templates expect them: arguments of calls as objects, and text as a string
        unless the template reads parts."""
        for i, message in enumerate(messages):
            thoughts = [message[key] for key in _THOUGHTS if message.get(key) is not None]
            if thoughts:  # one thing under three names
                messages[i] = message = {"thinking": thoughts[0], **message}
                message["reasoning_content"] = thoughts[0]
            content = message.get("content")
            if isinstance(content, list) and not self._takes_parts:
                message["content"] = "\n".join(
                    p["text"] for p in content if p.get("type") == "text"
                )
            for call in message.get("tool_calls") or ():
                function = call.get("function", call)
                function["arguments"] = _object(function.get("arguments"))
        return messages


class Spelling:
    """The texts of a template in which whatever else could be a control token is disguised.

    values: all messages, tools and other values that are going to be spelled
    spare: three characters that occur nowhere in them
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, values: Any) -> None:
        strings = [*template.sources, *_strings(values)]
        self.disguise, self.spare = _disguise(tokenizer, strings)
        self._template = template
        self._hide = _Hide(tokenizer, self.disguise, template._markup)
        self._kept = (*self.disguise.values(), *self.spare)

    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        *,
        marks: tuple[str, str] = ("", ""),
        **extra: Any,
    ) -> str:
        """The disguised text; `marks` stand around what {% generation %} marks in the template."""
        hide = self._hide
        return self._template._render(
            [hide.message(message) for message in messages],
            hide.value(tools) if tools else None,
            add_generation_prompt,
            hide.value(extra),
            self._kept,
            marks,
        )


class _Hide:
    """Puts the stand-ins of `disguise` into the strings of messages and tools."""

    def __init__(
        self, tokenizer: Tokenizer, disguise: Mapping[str, str], markup: Iterable[str]
    ) -> None:
        """markup: what the template looks for."""
        self._all = str.maketrans(dict(disguise))
        control, special = tokenizer.control_tokens, tokenizer.special_ids
        soft = {text for text in {*control, *markup} if control.get(text) not in special}
        pattern = "|".join(re.escape(text) for text in sorted(soft, key=len, reverse=True))
        self._soft = re.compile(f"({pattern})") if soft else None

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return value.translate(self._all)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def message(self, message: Message) -> dict[str, Any]:
        hidden: dict[str, Any] = self.value(message)
        for key in ("content", "reasoning_content"):
            own = message.get(key)
            if message.get("role") == "assistant" and isinstance(own, str) and self._soft:
                pieces = self._soft.split(own)
                pieces[::2] = [piece.translate(self._all) for piece in pieces[::2]]
                hidden[key] = "".join(pieces)
        return hidden


def _disguise(tokenizer: Tokenizer, strings: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """A character that is in none of `strings` for each one that begins a control token, and three
    more such."""
    firsts = sorted({token[0] for token in tokenizer.control_tokens})
    used = set().union(*strings)
    free = [char for char in _STAND_INS if char not in used]
    if len(free) < len(firsts) + 3:
        raise UsageError("the messages hold every syllable of the Yi script: shorten them")
    return dict(zip(firsts, free, strict=False)), free[len(firsts) : len(firsts) + 3]


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _plain(value: Any) -> Any:
    """JSON values only: a template gets no object whose methods it could call."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise UsageError(f"a message may hold JSON values only, not {type(value).__name__}")


def _object(arguments: Any) -> Any:
    """The arguments of a call, which OpenAI's API has as a JSON text, as an object if they are."""
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments
