"""Writes a language model for other programs: a Hugging Face folder, or a GGUF file.

The tables that read a family's files are used backwards, so that what was exported and loaded again
is the same model, by token ids and by logits (in a folder, and in GGUF as F32 or as precise as the
model is, to the bit).
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trivium import files
from trivium.checkpoint import WEIGHTS, Table, expand
from trivium.errors import UsageError
from trivium.language import export_tokenizer
from trivium.language.embed import FLAGS, GGUF_POOLINGS, Embedder
from trivium.language.families import family_of, gguf_config, hf_config
from trivium.language.families.family import Family, explicit
from trivium.language.pretrained import WITH_HEAD, LanguageModel
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.nn.positions import frequencies, scaling_kind

GGUFType = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
# llama.cpp's numbers for "mostly of this type" (general.file_type).
FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "BF16": 32,
}
BLOCK = 32  # weights that share a scale
# Small, and read by position: llama.cpp keeps them in full precision.
KEPT_WHOLE = ("position.weight", "stem.types")
ROPE_FACTORS = "rope_freqs.weight"


# -- folder -------------------------------------------------------------------------------------


def export_folder(model: LanguageModel | Embedder, path: Path) -> None:
    """Write config.json, model.safetensors, tokenizer and chat template into a new folder.

    Raises UsageError if `path` exists, if the weights are rounded (int8 and the like), or if no
    published family is built as this model is. The folder appears when it is whole.
    """
    transformer = _exact(model)
    family = family_of(transformer.config)
    raw = _hf_config(family, transformer)
    _require_new(path)
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            _save_weights(family, transformer, scratch / WEIGHTS)
            _write_json(scratch / "config.json", {**raw, **_token_ids(model)})
            model.tokenizer.save(scratch)
            if isinstance(model, Embedder):
                _save_pooling(model, scratch)
            elif model.template is not None:
                _save_template(model.template.named, scratch)
            scratch.chmod(0o755)
            scratch.rename(path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _hf_config(family: Family, model: Transformer) -> dict[str, Any]:
    config = explicit(model.config)
    activation = next(name for name, mlp in family.activations.items() if mlp == config.mlp)
    raw = {
        "architectures": [family.architectures[0]],
        "model_type": family.model_type,
        family.activation_key: activation,
        **{theirs: getattr(config, ours) for ours, theirs in family.hf_config.items()},
        **family.to_hf(config),
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."),
    }
    _require_same(config, hf_config(family, raw), "a Hugging Face config")
    return raw


def _save_weights(family: Family, model: Transformer, path: Path) -> None:
    from safetensors.torch import save_file

    # The names of a body are written with a prefix where a head stands beside it.
    prefix = "" if model.config.transform == "none" else family.hf_prefixes[0]
    beside = [part.name for ours in WITH_HEAD for part in family.hf_names.get(ours, ())]
    tensors = {}
    for _, bare, tensor in _theirs(family.hf_names, model):
        name = bare if bare in beside else prefix + bare
        dtype = model.embedding.weight.dtype
        rounded = tensor.to(dtype)
        # A change may need more bits than the model has; then those are written.
        kept = rounded if torch.equal(rounded.to(tensor.dtype), tensor) else tensor
        tensors[name] = kept.contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


def _save_template(named: Mapping[str, str], folder: Path) -> None:
    files.write_atomic(folder / "chat_template.jinja", named["default"])
    for name, source in named.items():
        if name != "default":
            place = folder / "additional_chat_templates"
            files.write_atomic(place / f"{Path(name).name}.jinja", source)


def _save_pooling(embedder: Embedder, folder: Path) -> None:
    """What sentence-transformers, and `Embedder.load`, read beside the model."""
    kinds = ["Transformer", "Pooling", "Normalize"][: 3 if embedder.normalise else 2]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    flags = {key: mode == embedder.pooling for mode, key in FLAGS.items()}
    _write_json(folder / "modules.json", modules)
    pooling = {"word_embedding_dimension": embedder.width, **flags}
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    length = {"max_seq_length": embedder.max_tokens, "do_lower_case": False}
    _write_json(folder / "sentence_bert_config.json", length)


# -- GGUF ---------------------------------------------------------------------------------------


def export_gguf(model: LanguageModel | Embedder, path: Path, type: GGUFType = "Q8_0") -> None:
    """Write one GGUF file with weights, tokenizer and chat template.

    Matrices are stored as `type` (as F16 where their rows do not fill its blocks of 32), vectors as
    F32. Raises UsageError as `export_folder` does, and where the format cannot hold the tokenizer.
    """
    if type not in FILE_TYPES:
        raise UsageError(f"GGUF type {type!r} cannot be written; known: {', '.join(FILE_TYPES)}")
    transformer = _exact(model)
    family = family_of(transformer.config)
    tensors = {name: (ours, tensor) for ours, name, tensor in _gguf_tensors(family, transformer)}
    metadata = _gguf_metadata(family, model, type)
    shapes = {name: tuple(tensor.shape) for name, (_, tensor) in tensors.items()}
    known = {"general.architecture": family.gguf, **metadata}
    config = replace(transformer.config, rope_scaling=None)
    found = replace(gguf_config(family, known, shapes), rope_scaling=None)
    _require_same(config, found, "GGUF")
    _require_new(path)
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            _write_gguf(Path(scratch), family.gguf, metadata, tensors, type)
            os.chmod(scratch, 0o644)
            os.replace(scratch, path)
        finally:
            Path(scratch).unlink(missing_ok=True)


def _gguf_tensors(family: Family, model: Transformer) -> Iterator[tuple[str, str, Tensor]]:
    yield from _theirs(family.gguf_names, model)
    config = model.config
    if scaling_kind(config.rope_scaling) in ("llama3", "factors"):
        head_dim = config.head_dim or config.width // config.heads
        scaled = frequencies(head_dim, config.rope_base, config.rope_scaling)
        yield "", ROPE_FACTORS, frequencies(head_dim, config.rope_base) / scaled


def _gguf_metadata(
    family: Family, model: LanguageModel | Embedder, type: GGUFType
) -> dict[str, Any]:
    config = explicit(model.model.config)
    values = {theirs: getattr(config, ours) for ours, theirs in family.gguf_config.items()}
    values |= family.to_gguf(config)
    if scaling_kind(config.rope_scaling) == "linear" and config.rope_scaling is not None:
        values["{arch}.rope.scaling.type"] = "linear"
        values["{arch}.rope.scaling.factor"] = float(config.rope_scaling["factor"])
    metadata = {key.format(arch=family.gguf): value for key, value in values.items()}
    metadata |= {
        "general.name": model.name,
        "general.file_type": FILE_TYPES[type],
        "general.quantization_version": 2,
        **export_tokenizer.metadata(model.tokenizer, config.vocab_size),
    }
    if isinstance(model, Embedder):
        kinds = {name: kind for kind, name in GGUF_POOLINGS.items()}
        metadata[f"{family.gguf}.pooling_type"] = kinds[model.pooling]
    elif model.template is not None:
        others = [name for name in model.template.named if name != "default"]
        metadata["tokenizer.chat_template"] = model.template.named["default"]
        metadata |= {f"tokenizer.chat_template.{n}": model.template.named[n] for n in others}
        if others:
            metadata["tokenizer.chat_templates"] = others
    return metadata


def _write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, Tensor]],
    type: GGUFType,
) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quant_shape_to_byte_shape, quantize

    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        writer.add_key_value(key, value, *_gguf_kind(value))
    kinds = {n: GGMLQuantizationType[_kind(o, t, type)] for n, (o, t) in tensors.items()}
    for name, (_, tensor) in tensors.items():
        shape = quant_shape_to_byte_shape(tuple(tensor.shape), kinds[name])
        nbytes = math.prod(shape)
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), nbytes, kinds[name])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, (_, tensor) in tensors.items():
            data = quantize(tensor.float().contiguous().numpy(), kinds[name])
            writer.write_tensor_data(data.view(np.uint8))
    finally:
        writer.close()


def _kind(ours: str, tensor: Tensor, type: GGUFType) -> str:
    if tensor.dim() == 1 or ours in KEPT_WHOLE:
        return "F32"
    if type.startswith("Q") and tensor.shape[-1] % BLOCK:
        return "F16"
    return type


def _gguf_kind(value: Any) -> tuple[Any, ...]:
    """The type of a metadata value, and for a list that of its elements."""
    from gguf import GGUFValueType as Kind

    kinds = {bool: Kind.BOOL, int: Kind.UINT32, float: Kind.FLOAT32, str: Kind.STRING}
    if not isinstance(value, list):
        return (kinds[type(value)],)
    element = Kind.INT32 if isinstance(value[0], int) else kinds[type(value[0])]
    return Kind.ARRAY, element


# -- both ---------------------------------------------------------------------------------------


def _exact(model: LanguageModel | Embedder) -> Transformer:
    """The model, on condition that its weights are its own numbers and no rounded copy."""
    rounded = any(name.endswith((".scale", ".panels")) for name, _ in model.model.named_buffers())
    if rounded:
        raise UsageError(
            f"{model.name} was loaded with rounded weights, which are no longer the model's own: "
            "load it with precision bfloat16 or float32 to export it"
        )
    return model.model


def _require_new(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists already: delete it, or choose another name")


def _theirs(table: Table, model: Transformer) -> Iterator[tuple[str, str, Tensor]]:
    """Our name, their name, and the tensor as they store it, for every parameter."""
    state = model.state_dict()
    rows = expand(table, model.config.layers)
    missing = [name for name in state if name not in rows]
    if missing:
        raise UsageError(f"the format has no name for {missing[0]}: the model cannot be exported")
    for ours, tensor in state.items():
        parts = rows[ours]
        pieces = tensor.detach().cpu().split(_sizes(ours, model.config, len(parts), len(tensor)))
        for part, piece in zip(parts, pieces, strict=True):
            yield ours, part.name, part.change.write(piece, model.config) if part.change else piece


def _sizes(name: str, config: TransformerConfig, parts: int, rows: int) -> list[int]:
    """How many rows of ours each part has."""
    if parts == 3:  # queries, keys, values
        config = explicit(config)
        assert config.head_dim is not None and config.groups is not None
        keys = config.groups * config.head_dim
        return [rows - 2 * keys, keys, keys]
    return [rows // parts] * parts


def _require_same(config: TransformerConfig, found: TransformerConfig, where: str) -> None:
    """What will be read back must be the model that was written."""
    ours, theirs = explicit(config), explicit(found)
    lost = [
        f.name for f in fields(ours) if not _same(getattr(ours, f.name), getattr(theirs, f.name))
    ]
    if lost:
        raise UsageError(
            f"{where} has no place for this model's {', '.join(lost)}: it cannot be exported so"
        )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)


def _token_ids(model: LanguageModel | Embedder) -> dict[str, int]:
    tokenizer = model.tokenizer
    roles = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    return {f"{role}_token_id": id for role, id in roles.items() if id is not None}


def _write_json(path: Path, value: Any) -> None:
    files.write_atomic(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")
