"""What a person puts beside a request: text on stdin, files of text, pictures."""

import base64
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium.errors import NotFound, UsageError
from trivium.llmos.messages import Message

LARGEST = 10 << 20  # bytes; more text than any model reads, more picture than any endpoint takes

_PICTURES = {  # how a file begins: its media type
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}


@dataclass(frozen=True)
class Attachment:
    """`source` names who wrote it, as the gateway knows it; a picture has a media type."""

    source: str
    data: bytes
    media_type: str | None = None

    @property
    def text(self) -> str:
        """The text in a fence that it does not contain, so that it cannot end its own quotation."""
        text = self.data.decode("utf-8-sig")
        longest = max((len(run) for run in re.findall("`+", text)), default=0)
        fence = "`" * max(3, longest + 1)
        name = self.source.removeprefix("file:")
        return f"{name}:\n{fence}\n{text.rstrip()}\n{fence}"

    @property
    def part(self) -> Mapping[str, Any]:
        """The picture as a content part of OpenAI's API."""
        url = f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}


def read_file(path: Path) -> Attachment:
    """Raises UsageError for what is neither UTF-8 text nor a picture, or is too large."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise NotFound(f"no such file: {path}") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    _check_size(data, str(path))
    media_type = next((kind for magic, kind in _PICTURES.items() if data.startswith(magic)), None)
    if media_type == "image/webp" and data[8:12] != b"WEBP":
        media_type = None
    if not media_type:
        _check_text(data, str(path))
    name = " ".join(path.name.encode(errors="replace").decode().split())
    return Attachment(f"file:{name}", data, media_type)


def read_stdin() -> str:
    """The text that is piped in, "" when there is none. Raises UsageError when it is not UTF-8."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    data = sys.stdin.buffer.read(LARGEST + 1)
    _check_size(data, "stdin")
    _check_text(data, "stdin")
    return data.decode("utf-8-sig")


def compose(prompt: str, attachments: Sequence[Attachment]) -> Message:
    """One message: what is attached, then the request about it."""
    texts = [attachment.text for attachment in attachments if not attachment.media_type]
    text = "\n\n".join([*texts, prompt])
    pictures = [attachment.part for attachment in attachments if attachment.media_type]
    return Message("user", (*pictures, {"type": "text", "text": text}) if pictures else text)


def check_prompt(text: str) -> str:
    """Raises UsageError for a request that is empty or, from the shell, not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError("the request is not valid UTF-8 text") from error
    if not text.strip():
        raise UsageError("the request is empty: give a text, or pipe one in")
    return text


def _check_text(data: bytes, name: str) -> None:
    if b"\0" in data:
        raise UsageError(f"{name} is binary; only text in UTF-8 and pictures can be read")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text (byte {error.start}): convert it first, for example "
            "with iconv -f latin1 -t utf-8"
        ) from error


def _check_size(data: bytes, name: str) -> None:
    if len(data) > LARGEST:
        raise UsageError(f"{name} holds more than the {LARGEST >> 20} MB that are read at once")
