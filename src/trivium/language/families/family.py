"""What a family of published language models is: literal tables from its names to ours.

A family says how its config and its weights are named on the Hugging Face hub and in GGUF files, in
terms of our `TransformerConfig` and `Transformer`. The tables are read in both directions: to load
and to export.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trivium.checkpoint import Part, Table
from trivium.errors import UsageError
from trivium.language.transformer import TransformerConfig
from trivium.nn.positions import scaling_kind

Values = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Family:
    """`hf_config` and `gguf_config` map our fields to their names; `{arch}` in a GGUF key stands
    for the file's architecture.

    fixed: the structure that all members share
    defaults: what a config means that does not say
    activations: their names for the activation, and ours for the MLP that has it
    required: settings that must have one of these values where they are given, since others would
        change what the model computes
    from_hf, to_hf, from_gguf, to_gguf: what takes more than a change of names, as fields of our
        config or as entries of theirs
    hf_prefixes: some tools write one of these before every name
    ignored: tensors whose names end so are stored by other programs and nobody needs them
    """

    model_type: str
    architectures: tuple[str, ...]
    gguf: str
    fixed: Values
    defaults: Values
    activations: Mapping[str, str]
    hf_config: Mapping[str, str]
    hf_names: Table
    gguf_config: Mapping[str, str]
    gguf_names: Table
    activation_key: str = "hidden_act"
    required: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    from_hf: Callable[[Values], Values] = lambda raw: {}
    to_hf: Callable[[TransformerConfig], Values] = lambda config: {}
    from_gguf: Callable[[Values, Shapes], Values] = lambda metadata, shapes: {}
    to_gguf: Callable[[TransformerConfig], Values] = lambda config: {}
    hf_prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def fits(self, config: TransformerConfig) -> bool:
        """Whether a model of this config is one of the family."""
        config = explicit(config)
        same = all(getattr(config, name) == value for name, value in self.fixed.items())
        return same and config.mlp in self.activations.values()


def explicit(config: TransformerConfig) -> TransformerConfig:
    """The same config with what it leaves open written out, so that equal models compare equal."""
    head_dim = config.head_dim or config.width // config.heads
    usual = config.query_scale is not None and abs(config.query_scale**-2 / head_dim - 1) < 1e-6
    return replace(
        config,
        groups=config.groups or config.heads,
        head_dim=head_dim,
        query_scale=None if usual else config.query_scale,
    )


def same(names: Mapping[str, str]) -> dict[str, tuple[Part, ...]]:
    """The rows of a table whose tensors are ours but for the name."""
    return {ours: (Part(theirs),) for ours, theirs in names.items()}


# -- what several families have in common -------------------------------------------------------


def read_rope(raw: Values, base: float = 10000.0) -> dict[str, Any]:
    """Base and scaling of the rotary positions: rope_parameters since transformers 5, rope_theta
    and rope_scaling before."""
    parameters = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or parameters
    return {
        "rope_base": raw.get("rope_theta") or parameters.get("rope_theta") or base,
        "rope_scaling": None if scaling_kind(scaling) == "default" else dict(scaling),
    }


def write_rope(config: TransformerConfig) -> dict[str, Any]:
    if scaling_kind(config.rope_scaling) == "factors":
        raise UsageError(
            "the rope factors of this model come from a GGUF file and have no place in a "
            "Hugging Face config: export it as GGUF"
        )
    return {"rope_theta": config.rope_base, "rope_scaling": config.rope_scaling}


def read_window(raw: Values, full_layers: Iterable[int] = ()) -> dict[str, Any]:
    """Sliding window and the layers without one: by `layer_types` where it is given, otherwise
    `full_layers`."""
    kinds = raw.get("layer_types")
    if kinds:
        unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
        if unknown:
            raise UsageError(f"attention of the kind {unknown[0]!r} is not supported")
        full_layers = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    full = tuple(full_layers)
    if not raw.get("sliding_window") or len(full) == raw.get("num_hidden_layers"):
        return {"window": None, "full_layers": ()}
    return {"window": raw["sliding_window"], "full_layers": full}


def write_window(config: TransformerConfig) -> dict[str, Any]:
    everywhere = range(config.layers) if config.window is None else config.full_layers
    kinds = [
        "full_attention" if i in everywhere else "sliding_attention" for i in range(config.layers)
    ]
    return {"sliding_window": config.window, "layer_types": kinds}
