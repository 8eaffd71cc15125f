"""`export`: a model written for other programs, as a GGUF file or a Hugging Face folder."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trivium import files, hub
from trivium.cli import local, options
from trivium.cli.console import print_json
from trivium.download import format_size
from trivium.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from trivium.language.embed import Embedder
    from trivium.language.pretrained import LanguageModel

TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
WHOLE = ("f32", "f16", "bf16")  # those that a folder can have
LARGEST_F16 = 65504
# What a model's folder is made of. A folder that holds anything else is never replaced.
MEMBERS = {".json", ".safetensors", ".jinja", ".txt", ".model", ".md"}
FOLDERS = {"1_Pooling", "2_Normalize", "additional_chat_templates"}


@click.command()
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--type",
    "kind",
    type=click.Choice(TYPES, case_sensitive=False),
    help="How weights are stored (default: q8_0 in GGUF; in a folder bf16 where that loses "
    "nothing, else f32). The q types are for GGUF.",
)
@click.option("--force", is_flag=True, help="Replace a model that is there already.")
@options.as_json
def export(model: str, out: Path, kind: str | None, force: bool, as_json: bool) -> None:
    """Write a model for other programs.

    \b
    trivium export smollm2-135m-instruct smollm2.gguf --type q4_1
    trivium export ./my-model ./my-model-half --type f16
    trivium export all-minilm-l6-v2 minilm.gguf --type f16

    MODEL is what --model takes, or an embedding model. OUT is a GGUF file if it ends in .gguf, else
    a Hugging Face folder. It appears when it is whole.
    """
    local.require_here(model, "to export it")
    gguf = out.suffix.lower() == ".gguf"
    if kind is not None and not gguf and kind not in WHOLE:
        raise UsageError(
            f"--type {kind} is for GGUF: let OUT end in .gguf, or take {', '.join(WHOLE)}"
        )
    source = hub.find(model)
    _check_out(out, source, gguf, force)
    start = time.monotonic()
    with local.needed():
        loaded = _load(source)
        from trivium.language.export import export_folder, export_gguf

    with _place(out, force) as place:
        if gguf:
            kind = kind or "q8_0"
            _check_range(loaded.model, kind, loaded.name)
            export_gguf(loaded, place, kind.upper())  # type: ignore[arg-type]
        else:
            kind = kind or _exact_type(loaded.model)
            _check_range(loaded.model, kind, loaded.name)
            _round(loaded.model, kind)
            export_folder(loaded, place)
    size = sum(path.stat().st_size for path in (out, *out.rglob("*")) if path.is_file())
    if as_json:
        print_json(_record(out, gguf, kind, size, loaded.model, time.monotonic() - start))
        return
    what = "GGUF" if gguf else "a Hugging Face folder"
    seconds = time.monotonic() - start
    click.echo(f"{out}: {what}, {kind}, {format_size(size)} ({seconds:.1f} s)", err=True)


def _record(
    out: Path, gguf: bool, kind: str, size: int, model: "nn.Module", seconds: float
) -> dict[str, Any]:
    return {
        "path": str(out),
        "format": "gguf" if gguf else "folder",
        "type": kind,
        "size": size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(seconds, 3),
    }


def _check_out(out: Path, source: Path, gguf: bool, force: bool) -> None:
    """Refuse, before anything is loaded, to overwrite what was not asked for or is no model."""
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise UsageError(f"{out} exists already: --force replaces it")
    real, original = out.resolve(), source.resolve()
    if real == original or real in original.parents:
        raise UsageError(f"{out} holds the model that is to be exported: choose another name")
    if gguf or out.is_file():
        magic = b""
        if out.is_file():
            with out.open("rb") as file:
                magic = file.read(4)
        if magic != b"GGUF" or not gguf:
            raise UsageError(f"{out} is no {'GGUF file' if gguf else 'folder'}: it is not replaced")
        return
    foreign = [path.name for path in sorted(out.iterdir()) if not _is_member(path)]
    if foreign or not (out / "config.json").is_file():
        what = f"holds {foreign[0]}" if foreign else "has no config.json"
        raise UsageError(f"{out} is no folder of a model ({what}): it is not replaced")


def _is_member(path: Path) -> bool:
    return path.name in FOLDERS if path.is_dir() else path.suffix in MEMBERS


@contextmanager
def _place(out: Path, force: bool) -> Iterator[Path]:
    """Where to write. What was there is replaced in the end, if all went well."""
    if not force:
        yield out
        return
    with files.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield scratch / out.name
        with files.writing(out):
            if out.is_dir():
                out.rename(scratch / "replaced")
            (scratch / out.name).replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _load(path: Path) -> "LanguageModel | Embedder":
    """The model in full precision: exactly what its file says."""
    from trivium.language.embed import Embedder, is_embedder
    from trivium.models import load

    if is_embedder(path):
        return Embedder.load(path, device="cpu")
    return load(path, device="cpu", precision="float32")


def _exact_type(model: "nn.Module") -> str:
    """The smallest type that keeps every weight."""
    same = (bool((p.bfloat16() == p).all()) for p in model.parameters())
    return "bf16" if all(same) else "f32"


def _check_range(model: "nn.Module", kind: str, name: str) -> None:
    if kind != "f16":
        return
    largest = max(float(parameter.abs().max()) for parameter in model.parameters())
    if largest > LARGEST_F16:
        raise UsageError(f"{name} has a weight of {largest:.3g}, too large for f16: take bf16")


def _round(model: "nn.Module", kind: str) -> None:
    import torch

    model.to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind])
