"""The kinds of language models that trivium trains: what the config.json of a run may name."""

from typing import Any

from torch import nn

from trivium.language.elmo import Elmo, ElmoConfig
from trivium.language.recurrent import Recurrent, RecurrentConfig
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.language.xlnet import XLNet, XLNetConfig

# Each has features, logits and forward, all of which continue a `KVCache`.
KINDS: dict[str, tuple[type[nn.Module], type[Any]]] = {
    "transformer": (Transformer, TransformerConfig),
    "recurrent": (Recurrent, RecurrentConfig),
    "elmo": (Elmo, ElmoConfig),
    "xlnet": (XLNet, XLNetConfig),
}
