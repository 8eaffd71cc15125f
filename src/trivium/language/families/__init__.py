"""Families of published language models, each a literal table in a module of this package.

To add a family, add a `Family`; no code of the model changes unless it has a part that is new.
"""

from collections.abc import Mapping
from typing import Any

from trivium.errors import UsageError
from trivium.language.families.bert import BERT
from trivium.language.families.family import Family, Shapes
from trivium.language.families.gemma import GEMMA3
from trivium.language.families.gpt2 import GPT2
from trivium.language.families.llama import LLAMA, MISTRAL
from trivium.language.families.qwen import QWEN2, QWEN3
from trivium.language.transformer import TransformerConfig

# Where several would do (Llama and Mistral are "llama" in GGUF), the first is taken.
FAMILIES = (QWEN2, QWEN3, GEMMA3, BERT, GPT2, LLAMA, MISTRAL)
SIZES = ("width", "layers", "heads", "context")


def family_of(config: TransformerConfig) -> Family:
    """The family whose programs would understand a model of this config."""
    for family in FAMILIES:
        if family.fits(config):
            return family
    raise UsageError(
        "no published family has this model's parts together "
        f"({', '.join(family.model_type for family in FAMILIES)}), so it cannot be exported"
    )


def hf_family(raw: Mapping[str, Any]) -> Family:
    """The family that a published config.json belongs to."""
    names = raw.get("architectures") or []
    for family in FAMILIES:
        if any(name in family.architectures for name in names):
            return family
    known = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise UsageError(
        f"architecture {', '.join(names) or 'missing'} is not supported; known: {known}"
    )


def hf_config(family: Family, raw: Mapping[str, Any]) -> TransformerConfig:
    """Our config from a published config.json. Raises UsageError for what we would get wrong."""
    for key, allowed in family.required.items():
        if raw.get(key) is not None and raw[key] not in allowed:
            raise UsageError(f"{family.architectures[0]} with {key} = {raw[key]!r} is unsupported")
    fields = {
        ours: raw[theirs]
        for ours, theirs in family.hf_config.items()
        if raw.get(theirs) is not None
    }
    activation = raw.get(family.activation_key) or next(iter(family.activations))
    if activation not in family.activations:
        raise UsageError(f"activation {activation!r} is not supported in {family.architectures[0]}")
    fields["mlp"] = family.activations[activation]
    return _config(family, {**fields, **family.from_hf(raw)})


def gguf_family(metadata: Mapping[str, Any]) -> Family:
    """The family of a GGUF file, by its `general.architecture`."""
    architecture = metadata.get("general.architecture")
    for family in FAMILIES:
        if family.gguf == architecture:
            return family
    known = ", ".join(dict.fromkeys(family.gguf for family in FAMILIES))
    raise UsageError(f"GGUF architecture {architecture!r} is not supported; known: {known}")


def gguf_config(family: Family, metadata: Mapping[str, Any], shapes: Shapes) -> TransformerConfig:
    """Our config from the metadata of a GGUF file and the shapes of its tensors."""
    fields = {
        ours: _meant(metadata[key])
        for ours, theirs in family.gguf_config.items()
        if (key := theirs.format(arch=family.gguf)) in metadata
    }
    try:
        fields["vocab_size"] = shapes["token_embd.weight"][0]
    except KeyError:
        raise UsageError("the GGUF file has no tensor token_embd.weight") from None
    fields["tied"] = "output.weight" not in shapes
    fields["mlp"] = next(iter(family.activations.values()))
    scaling = metadata.get(f"{family.gguf}.rope.scaling.type", "none")
    if scaling == "linear":
        factor = metadata[f"{family.gguf}.rope.scaling.factor"]
        fields["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif scaling != "none":
        raise UsageError(f"rope scaling {scaling!r} is not supported in GGUF; none and linear are")
    return _config(family, {**fields, **_from_gguf(family, metadata, shapes)})


def _from_gguf(family: Family, metadata: Mapping[str, Any], shapes: Shapes) -> Mapping[str, Any]:
    try:
        return family.from_gguf(metadata, shapes)
    except KeyError as error:
        raise UsageError(f"the GGUF file does not say {error.args[0]}") from None


def _meant(value: Any) -> Any:
    """The decimal that was rounded to the float32 of a GGUF file: 1e-06, not 9.999999975e-07."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _config(family: Family, fields: Mapping[str, Any]) -> TransformerConfig:
    missing = [name for name in SIZES if not fields.get(name)]
    if missing:
        raise UsageError(f"the config does not say: {', '.join(missing)}")
    for name in {*SIZES, "hidden", "vocab_size", "groups", "head_dim"} & fields.keys():
        if type(fields[name]) is not int or fields[name] < 1:
            raise UsageError(f"the config's {name} is {fields[name]!r}, not a positive number")
    hidden = {"hidden": 4 * fields["width"]}
    # A family's structure is no matter of the file: tied weights of BERT, for one.
    return TransformerConfig(**{**hidden, **family.defaults, **fields, **family.fixed})
