"""`show`: what a model is, read from its own files."""

import json
import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import click

from trivium import hub
from trivium.cli import options
from trivium.cli.console import print_json
from trivium.cli.render import printable
from trivium.download import format_size
from trivium.errors import NotFound, UsageError
from trivium.files import read_json
from trivium.recipes import card

# The same number under the names that families of models give it.
CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
WIDTH = ("hidden_size", "n_embd", "d_model")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
MAX_HEADER = 100 << 20  # bytes of JSON at the start of a safetensors file; the format's own limit


@click.command()
@click.argument("name")
@options.as_json
def show(name: str, as_json: bool) -> None:
    """Tell what a model is.

    NAME is what --model takes. Architecture, size, context and template are read from the model's
    files; nothing is loaded. Of the folder of a run of `trivium train` it prints the model card.
    """
    run = Path(name).expanduser()
    if card.is_run(run):
        if as_json:
            print_json(card.describe(run))
        else:
            click.echo(printable(card.printed(run)), nl=False)
        return
    facts = describe(name)
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        if value is None:
            continue
        if key == "template":
            value = f"yes, {len(value)} characters (--json prints it)"
        elif key == "size":
            value = format_size(value)
        elif isinstance(value, int):
            value = f"{value:,}"
        click.echo(f"{key:<14}{value}")


def describe(name: str) -> dict[str, Any]:
    """The facts of a model by name; those of the catalogue alone when it is not on this disk."""
    entry = hub.CATALOGUE.get(name)
    facts: dict[str, Any] = {"name": name}
    if entry is not None:
        facts |= {"description": entry.description, "kind": entry.kind, "size": entry.size}
    try:
        path = hub.find(name)
    except NotFound:
        if entry is None:
            raise
        return facts | {"licence": entry.licence, "path": None, "get": f"trivium pull {name}"}
    facts |= _describe_folder(path) if path.is_dir() else _describe_gguf(path)
    if entry is not None:
        facts["licence"] = entry.licence
    return facts | {"path": str(path)}


def _describe_gguf(path: Path) -> dict[str, Any]:
    try:
        from trivium.gguf_file import GGUFFile

        file = GGUFFile(path)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"reading GGUF files needs {error.name}: `pip install 'trivium[local]'`"
        ) from None
    architecture = file.metadata.get("general.architecture", "")
    own = {
        key.removeprefix(f"{architecture}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{architecture}.")
    }
    types: Counter[str] = Counter()
    for tensor in file.tensors.values():
        types[tensor.type_name] += tensor.nbytes
    return {
        "architecture": architecture or None,
        "parameters": sum(math.prod(tensor.shape) for tensor in file.tensors.values()),
        "context": own.get("context_length"),
        "layers": own.get("block_count"),
        "width": own.get("embedding_length"),
        "vocabulary": len(file.metadata.get("tokenizer.ggml.tokens", ())) or None,
        "format": "GGUF",
        "quantisation": _shares(types),
        "template": file.metadata.get("tokenizer.chat_template"),
        "licence": file.metadata.get("general.license"),
        "size": path.stat().st_size,
    }


def _describe_folder(folder: Path) -> dict[str, Any]:
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
    else:
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        config = {"architectures": f"LoRA adapter for {base}"}
    text = config.get("text_config")  # models that also see keep the language part here
    if not isinstance(text, dict):
        text = config
    classes = config.get("architectures")
    parameters, types = 0, Counter[str]()
    for file in sorted(path for path in folder.glob("*.safetensors") if path.is_file()):
        for shape, dtype, nbytes in _safetensors(file):
            parameters += math.prod(shape)
            types[dtype] += nbytes
    sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "architecture": classes[0] if isinstance(classes, list) and classes else classes,
        "parameters": parameters or None,
        "context": _first(text, CONTEXT),
        "layers": _first(text, LAYERS),
        "width": _first(text, WIDTH),
        "vocabulary": text.get("vocab_size"),
        "format": "safetensors" if types else "no weights",
        "quantisation": _shares(types),
        "template": _template(folder),
        "licence": config.get("license"),
        "size": sum(sizes),
    }


def _template(folder: Path) -> str | None:
    separate, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if separate.is_file():
        return separate.read_text(encoding="utf-8", errors="replace")
    template = read_json(settings, optional=True).get("chat_template")
    return template if isinstance(template, str) else None


def _safetensors(path: Path) -> list[tuple[list[int], str, int]]:
    """(shape, type, bytes) of each tensor, from the header: u64 length, then that much JSON."""
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            text = file.read(length)
            if len(text) < length:
                raise ValueError("cut short")
            header = json.loads(text)
            header.pop("__metadata__", None)
            return [
                (info["shape"], info["dtype"], info["data_offsets"][1] - info["data_offsets"][0])
                for info in header.values()
            ]
        except (
            struct.error,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise UsageError(f"{path} is a broken safetensors file ({error})") from error


def _first(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((record[name] for name in names if name in record), None)


def _shares(types: Counter[str]) -> str | None:
    """`Q4_1 71 %, Q8_0 29 %`: which types the bytes of the weights are of."""
    total = types.total()
    shares = [f"{name} {count / total:.0%}" for name, count in types.most_common() if count]
    return ", ".join(shares) or None
