"""The Transformer language model (Vaswani et al. 2017; GPT-2: Radford et al. 2019; Llama: Touvron
et al. 2023). One class; the families differ in their `TransformerConfig`.

    x ← embedding(ids) (+ position)
    x ← x + attention(norm(x));  x ← x + mlp(norm(x))      for every block
    logits ← head(norm(x))

B batch, T tokens, C width, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trivium.nn.attention import KVCache, SelfAttention
from trivium.nn.mlp import MLP, SwiGLU
from trivium.nn.norms import LayerNorm, RMSNorm
from trivium.nn.positions import LearnedPosition, Rotary
from trivium.nn.quantized import Int8Linear


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and kinds of the parts; the defaults train on a laptop."""

    vocab_size: int = 4096
    context: int = 512  # tokens
    width: int = 256
    layers: int = 6
    heads: int = 4
    groups: int | None = None  # heads of keys and values; None: as many as heads
    head_dim: int | None = None  # None: width / heads
    hidden: int = 768  # width inside the MLP
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    mlp: Literal["swiglu", "gelu", "gelu_tanh"] = "swiglu"
    position: Literal["rotary", "learned"] = "rotary"
    rope_base: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    qkv_bias: bool = False
    out_bias: bool = False  # of the output projection of attention
    mlp_bias: bool = False
    tied: bool = True  # the head is the embedding, transposed


NORMS: dict[str, Callable[[TransformerConfig], nn.Module]] = {
    "rms": lambda c: RMSNorm(c.width, c.norm_eps),
    "layer": lambda c: LayerNorm(c.width, eps=c.norm_eps),
}
MLPS: dict[str, Callable[[TransformerConfig], nn.Module]] = {
    "swiglu": lambda c: SwiGLU(c.width, c.hidden, bias=c.mlp_bias),
    "gelu": lambda c: MLP(c.width, c.hidden, bias=c.mlp_bias, approximate="none"),
    "gelu_tanh": lambda c: MLP(c.width, c.hidden, bias=c.mlp_bias, approximate="tanh"),
}
POSITIONS: dict[str, Callable[[TransformerConfig], nn.Module]] = {
    "rotary": lambda c: Rotary(c.head_dim or c.width // c.heads, c.rope_base, c.rope_scaling),
    "learned": lambda c: LearnedPosition(c.context, c.width),
}


class Embedding(nn.Embedding):
    """Token vectors; `project` is the same matrix used as the head of a tied model."""

    def rows(self, index: Tensor) -> Tensor:
        return self(index)

    def project(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


class Block(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = NORMS[config.norm](config)
        self.attention = SelfAttention(
            config.width,
            config.heads,
            groups=config.groups,
            head_dim=config.head_dim,
            qkv_bias=config.qkv_bias,
            out_bias=config.out_bias,
        )
        self.mlp_norm = NORMS[config.norm](config)
        self.mlp = MLPS[config.mlp](config)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), angles, cache, layer)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding: Embedding | Int8Linear = Embedding(config.vocab_size, config.width)
        self.position = POSITIONS[config.position](config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = NORMS[config.norm](config)
        self.head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)
        self.init_weights()

    @classmethod
    def empty(cls, config: TransformerConfig) -> "Transformer":
        """A model without storage, to be filled from a checkpoint."""
        with torch.device("meta"):
            return cls(config)

    @torch.no_grad()
    def init_weights(self) -> None:
        """GPT-2's initialisation.

        matrices, embedding      N(0, 0.02²)
        learned positions        N(0, 0.01²)
        attention.out, mlp.down  N(0, 0.02²/2L), since L blocks each add two of them to the stream
        biases                   0
        norms                    1
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name.startswith("position"):
                parameter.normal_(0, 0.01)
            elif name.endswith(("attention.out.weight", "mlp.down.weight")):
                parameter.normal_(0, 0.02 / (2 * self.config.layers) ** 0.5)
            elif "norm" not in name:
                parameter.normal_(0, 0.02)

    def features(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """ids (B, T) → the normalised stream (B, T, C). With a cache, ids continue what it
        holds."""
        start = cache.length if cache is not None else 0
        x, angles = self.position(self.embedding.rows(ids), start)
        for i, block in enumerate(self.layers):
            x = block(x, angles, cache, i)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.norm(x)

    def streams(self, ids: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The stream (B, T, C) after each of `layers`, counted from 0, in ascending order."""
        x, angles = self.position(self.embedding.rows(ids), 0)
        kept = []
        for i, block in enumerate(self.layers[: max(layers) + 1]):
            x = block(x, angles, None, i)
            if i in layers:
                kept.append(x)
        return kept

    def logits(self, features: Tensor) -> Tensor:
        """(…, C) → (…, V)"""
        return self.embedding.project(features) if self.head is None else self.head(features)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """ids (B, T) → logits (B, T, V)"""
        return self.logits(self.features(ids, cache))
