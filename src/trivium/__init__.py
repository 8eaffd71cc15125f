"""Trivium: language models, diffusion models, segmentation models, and the LLM OS.

The names below are loaded when they are first used: importing `trivium` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trivium.errors import TriviumError as TriviumError
    from trivium.hub import find as find
    from trivium.hub import pull as pull
    from trivium.language.embed import Embedder as Embedder
    from trivium.language.engine import Engine as Engine
    from trivium.language.pretrained import load_pretrained as load_pretrained
    from trivium.language.sampling import Sampling as Sampling
    from trivium.llmos.builtin import builtin_tools as builtin_tools
    from trivium.llmos.chat_model import ChatModel as ChatModel
    from trivium.llmos.chat_model import ScriptedModel as ScriptedModel
    from trivium.llmos.gateway import Gateway as Gateway
    from trivium.llmos.kernel import Budget as Budget
    from trivium.llmos.kernel import run as run
    from trivium.llmos.local import LocalModel as LocalModel
    from trivium.llmos.messages import Message as Message
    from trivium.llmos.remote import RemoteModel as RemoteModel
    from trivium.llmos.tools import Tool as Tool
    from trivium.llmos.tools import tool as tool
    from trivium.llmos.workspace import Workspace as Workspace

__version__ = "0.1.0"

_HOMES = {
    "Budget": "llmos.kernel",
    "ChatModel": "llmos.chat_model",
    "Embedder": "language.embed",
    "Engine": "language.engine",
    "Gateway": "llmos.gateway",
    "LocalModel": "llmos.local",
    "Message": "llmos.messages",
    "RemoteModel": "llmos.remote",
    "Sampling": "language.sampling",
    "ScriptedModel": "llmos.chat_model",
    "Tool": "llmos.tools",
    "TriviumError": "errors",
    "Workspace": "llmos.workspace",
    "builtin_tools": "llmos.builtin",
    "find": "hub",
    "load_pretrained": "language.pretrained",
    "pull": "hub",
    "run": "llmos.kernel",
    "tool": "llmos.tools",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
