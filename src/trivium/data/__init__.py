"""What a model is trained on: read from anywhere, in batches that are seeded, resumable to the bit
and split between processes.

    documents(source)        texts of files, folders, globs, hf:NAME, or the embedded default
    conversations(source)    messages, in all common shapes
    preferences(source)      prompts with replies of which some are better
    TokenBatches             texts as rows of tokens
    ConversationBatches      conversations, of which the assistant's turns are learnt
    PreferenceBatches        replies, the better ones first
    Mixture                  several of the first two, in given shares

Each name is loaded when it is first used: reading needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trivium.data.batches import Batch as Batch
    from trivium.data.batches import Batches as Batches
    from trivium.data.batches import ConversationBatches as ConversationBatches
    from trivium.data.batches import Mixture as Mixture
    from trivium.data.batches import TokenBatches as TokenBatches
    from trivium.data.conversation import Conversation as Conversation
    from trivium.data.conversation import Conversations as Conversations
    from trivium.data.conversation import Preference as Preference
    from trivium.data.conversation import Preferences as Preferences
    from trivium.data.conversation import conversations as conversations
    from trivium.data.conversation import preferences as preferences
    from trivium.data.corpus import Corpus as Corpus
    from trivium.data.corpus import Documents as Documents
    from trivium.data.corpus import documents as documents
    from trivium.data.replies import PreferenceBatches as PreferenceBatches

IGNORE = -100  # the target where nothing is to be learnt

_HOMES = {
    "Batch": "batches",
    "Batches": "batches",
    "Conversation": "conversation",
    "ConversationBatches": "batches",
    "Conversations": "conversation",
    "Corpus": "corpus",
    "Documents": "corpus",
    "Mixture": "batches",
    "Preference": "conversation",
    "PreferenceBatches": "replies",
    "Preferences": "conversation",
    "TokenBatches": "batches",
    "conversations": "conversation",
    "documents": "corpus",
    "preferences": "conversation",
}
__all__ = ["IGNORE", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
