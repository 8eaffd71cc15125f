"""The Transformer language model (Vaswani et al. 2017; GPT-2: Radford et al. 2019; Llama: Touvron
et al. 2023; Gemma 3: Gemma Team 2025; BERT: Devlin et al. 2018). One class; the families differ in
their `TransformerConfig`.

    x ← stem(embedding(ids) (+ position))
    x ← x + attention(norm(x));  x ← x + mlp(norm(x))      for every block (of kind "pre")
    logits ← head(norm(x))

B batch, T tokens, C width, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trivium.nn.attention import KVCache, SelfAttention
from trivium.nn.mlp import MLP, GeGLU, SwiGLU
from trivium.nn.norms import LayerNorm, QKNorm, RMSNorm
from trivium.nn.positions import (
    LearnedPosition,
    Rotary,
    WindowedRotary,
    rotate,
    rotate_full,
    rotate_window,
)
from trivium.nn.quantized import Int8Linear
from trivium.nn.segments import Segments


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
    block: Literal["pre", "post", "sandwich"] = "pre"  # where a block's norms stand
    stem: Literal["plain", "scaled", "bert"] = "plain"  # what is done to the embedded tokens
    token_types: int = 0  # kinds of segments that a "bert" stem tells apart
    mlp: Literal["swiglu", "geglu", "gelu", "gelu_tanh"] = "swiglu"
    position: Literal["rotary", "windowed_rotary", "learned"] = "rotary"
    rope_base: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    window_rope_base: float = 10000.0  # of the layers with a window, if "windowed_rotary"
    causal: bool = True  # False: every token sees all others, and nothing can be generated
    window: int | None = None  # a token sees itself and window − 1 before it
    full_layers: tuple[int, ...] = ()  # these see everything all the same
    qk_norm: bool = False
    query_scale: float | None = None  # of the scores; None: 1 / √head_dim
    qkv_bias: bool = False
    out_bias: bool = False  # of the output projection of attention
    mlp_bias: bool = False
    tied: bool = True  # the head is the embedding, transposed
    transform: Literal["none", "bert"] = "none"  # between the last block and the head


NORMS: dict[str, Callable[[TransformerConfig], nn.Module]] = {
    "rms": lambda c: RMSNorm(c.width, c.norm_eps),
    "layer": lambda c: LayerNorm(c.width, eps=c.norm_eps),
}
MLPS: dict[str, Callable[[TransformerConfig], nn.Module]] = {
    "swiglu": lambda c: SwiGLU(c.width, c.hidden, bias=c.mlp_bias),
    "geglu": lambda c: GeGLU(c.width, c.hidden, bias=c.mlp_bias),
    "gelu": lambda c: MLP(c.width, c.hidden, bias=c.mlp_bias, approximate="none"),
    "gelu_tanh": lambda c: MLP(c.width, c.hidden, bias=c.mlp_bias, approximate="tanh"),
}
POSITIONS: dict[str, Callable[[TransformerConfig], nn.Module]] = {
    "rotary": lambda c: Rotary(c.head_dim or c.width // c.heads, c.rope_base, c.rope_scaling),
    "windowed_rotary": lambda c: WindowedRotary(
        Rotary(c.head_dim or c.width // c.heads, c.rope_base, c.rope_scaling),
        Rotary(c.head_dim or c.width // c.heads, c.window_rope_base),
    ),
    "learned": lambda c: LearnedPosition(c.context, c.width),
}
TURNS = {  # of layers that see everything, and of layers with a window
    "rotary": (rotate, rotate),
    "windowed_rotary": (rotate_full, rotate_window),
    "learned": (rotate, rotate),  # there are no angles to turn by
}


class Embedding(nn.Embedding):
    """Token vectors; `project` is the same matrix used as the head of a tied model, which may have
    a bias."""

    bias: nn.Parameter | None

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__(vocab_size, width)
        self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        """Nothing: `Transformer.init_weights` does it. (Drawing for a tensor without storage makes
        PyTorch import its compiler, which takes seconds.)"""

    def rows(self, index: Tensor) -> Tensor:
        return self(index)

    def project(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class Scaled(nn.Module):
    """x·√C; the factor is rounded as x is, since Gemma was trained so."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = width**0.5

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor(self.factor).to(x.dtype).item()


class BertStem(nn.Module):
    """norm(x + the vector of the segment's type). All tokens are of the first type: a text of its
    own has one segment."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.types = nn.Parameter(torch.zeros(config.token_types, config.width))
        self.norm = NORMS[config.norm](config)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.types[0])


class BertTransform(nn.Module):
    """norm(gelu(Wx + b)), which BERT puts before its head."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = NORMS[config.norm](config)
        self.approximate = "tanh" if config.mlp == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(nn.functional.gelu(self.dense(x), approximate=self.approximate))


STEMS: dict[str, Callable[[TransformerConfig], nn.Module]] = {
    "plain": lambda c: nn.Identity(),
    "scaled": lambda c: Scaled(c.width),
    "bert": BertStem,
}
TRANSFORMS: dict[str, Callable[[TransformerConfig], nn.Module]] = {
    "none": lambda c: nn.Identity(),
    "bert": BertTransform,
}


def self_attention(config: TransformerConfig, layer: int) -> SelfAttention:
    """The attention of one layer, as the config has it."""
    c = config
    windowed = c.window is not None and layer not in c.full_layers
    head_dim = c.head_dim or c.width // c.heads
    return SelfAttention(
        c.width,
        c.heads,
        groups=c.groups,
        head_dim=head_dim,
        qkv_bias=c.qkv_bias,
        out_bias=c.out_bias,
        qk_norm=QKNorm(c.heads, c.groups or c.heads, head_dim, c.norm_eps) if c.qk_norm else None,
        turn=TURNS[c.position][windowed],
        causal=c.causal,
        window=c.window if windowed else None,
        scale=c.query_scale,
    )


class Block(nn.Module):
    """Norms before attention and MLP."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = NORMS[config.norm](config)
        self.attention = self_attention(config, layer)
        self.mlp_norm = NORMS[config.norm](config)
        self.mlp = MLPS[config.mlp](config)

    def forward(
        self,
        x: Tensor,
        angles: Any,
        cache: KVCache | None,
        layer: int,
        real: Tensor | None = None,
        segments: Segments | None = None,
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), angles, cache, layer, real, segments)
        return x + self.mlp(self.mlp_norm(x))


class PostNormBlock(nn.Module):
    """Norms behind the sums, as in the first Transformer and BERT."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention = self_attention(config, layer)
        self.attention_norm = NORMS[config.norm](config)
        self.mlp = MLPS[config.mlp](config)
        self.mlp_norm = NORMS[config.norm](config)

    def forward(
        self,
        x: Tensor,
        angles: Any,
        cache: KVCache | None,
        layer: int,
        real: Tensor | None = None,
        segments: Segments | None = None,
    ) -> Tensor:
        x = self.attention_norm(x + self.attention(x, angles, cache, layer, real, segments))
        return self.mlp_norm(x + self.mlp(x))


class SandwichBlock(nn.Module):
    """Norms before and behind attention and MLP (Ding et al. 2021; Gemma)."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = NORMS[config.norm](config)
        self.attention = self_attention(config, layer)
        self.attention_post_norm = NORMS[config.norm](config)
        self.mlp_norm = NORMS[config.norm](config)
        self.mlp = MLPS[config.mlp](config)
        self.mlp_post_norm = NORMS[config.norm](config)

    def forward(
        self,
        x: Tensor,
        angles: Any,
        cache: KVCache | None,
        layer: int,
        real: Tensor | None = None,
        segments: Segments | None = None,
    ) -> Tensor:
        y = self.attention(self.attention_norm(x), angles, cache, layer, real, segments)
        x = x + self.attention_post_norm(y)
        return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x)))


BLOCKS: dict[str, Callable[[TransformerConfig, int], nn.Module]] = {
    "pre": Block,
    "post": PostNormBlock,
    "sandwich": SandwichBlock,
}
LAST_NORMS: dict[str, Callable[[TransformerConfig], nn.Module]] = {
    "pre": lambda c: NORMS[c.norm](c),
    "post": lambda c: nn.Identity(),  # the last block ends with one
    "sandwich": lambda c: NORMS[c.norm](c),
}


class Transformer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding: Embedding | Int8Linear = Embedding(config.vocab_size, config.width)
        self.position = POSITIONS[config.position](config)
        self.stem = STEMS[config.stem](config)
        self.layers = nn.ModuleList(BLOCKS[config.block](config, i) for i in range(config.layers))
        self.norm = LAST_NORMS[config.block](config)
        self.transform = TRANSFORMS[config.transform](config)
        self.head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)
        if config.transform == "bert":  # its head has a bias
            self.embedding.bias = nn.Parameter(torch.zeros(config.vocab_size))
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
            if parameter.is_meta:
                continue
            if name.endswith("bias"):
                parameter.zero_()
            elif name.startswith("position"):
                parameter.normal_(0, 0.01)
            elif name.endswith(("attention.out.weight", "mlp.down.weight")):
                parameter.normal_(0, 0.02 / (2 * self.config.layers) ** 0.5)
            elif "norm" not in name:
                parameter.normal_(0, 0.02)

    def enter(
        self, ids: Tensor, start: int = 0, positions: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """ids (B, T), of which the first stands at position `start`, or each at its own of
        `positions` → the stream (B, T, C) before the first block, and the angles for the blocks."""
        x, angles = self.position(self.embedding.rows(ids), start, positions)
        return self.stem(x), angles

    def features(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        *,
        real: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """ids (B, T) → the normalised stream (B, T, C).

        cache: ids continue what it holds
        real: (B, T) bool, False where a token is padding, at which nobody looks
        segments: (B, T), equal for tokens of the same text; −1 is padding. Each text is computed
            as in a row of its own. Without the other two.
        """
        packed = None
        if segments is not None:
            assert cache is None and real is None
            packed = Segments.of(segments)
        start = cache.length if cache is not None else 0
        x, angles = self.enter(ids, start, None if packed is None else packed.positions)
        for i, block in enumerate(self.layers):
            x = block(x, angles, cache, i, real, packed)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.norm(x)

    def streams(self, ids: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The stream (B, T, C) after each of `layers`, counted from 0, in ascending order."""
        x, angles = self.enter(ids)
        kept = []
        for i, block in enumerate(self.layers[: max(layers) + 1]):
            x = block(x, angles, None, i)
            if i in layers:
                kept.append(x)
        return kept

    def logits(self, features: Tensor) -> Tensor:
        """(…, C) → (…, V)"""
        x = self.transform(features)
        return self.embedding.project(x) if self.head is None else self.head(x)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """ids (B, T) → logits (B, T, V)"""
        return self.logits(self.features(ids, cache))
