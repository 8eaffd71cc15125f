"""`doctor`: what works on this machine, what is missing, and the command that mends it."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from trivium import __version__, files, hub, huggingface
from trivium.cli import config, options
from trivium.cli.console import print_json
from trivium.download import format_size
from trivium.errors import TriviumError

EXTRAS = {  # the distributions of each extra in pyproject.toml, as a test checks
    "local": ("torch", "numpy", "safetensors", "tokenizers", "gguf", "llguidance", "jinja2"),
    "hub": ("huggingface-hub",),
    "plot": ("matplotlib",),
    "serve": ("fastapi", "uvicorn"),
}
# What makes products of these types fast, as Linux names it for x86 and for ARM.
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}


@dataclass(frozen=True)
class Check:
    """`ok` is None where something optional is absent; `fix` says how to get it."""

    name: str
    ok: bool | None
    detail: str
    fix: str | None = None


@click.command()
@click.option("--online", is_flag=True, help="Also ask the remote endpoint whether it answers.")
@options.as_json
@click.pass_context
def doctor(ctx: click.Context, online: bool, as_json: bool) -> None:
    """Tell what works here, what is missing and how to get it.

    Leaves with 1 when there is no way to chat: no local model that can run, and no endpoint.
    """
    checks = list(examine(online))
    healthy = checks[-1].ok is True
    if as_json:
        print_json({"ok": healthy, "checks": [asdict(check) for check in checks]})
    else:
        marks = _marks()
        for check in checks:
            click.echo(f"{marks[check.ok]} {check.name:<10} {check.detail}")
            if check.fix:
                click.echo(f"{' ' * 13}{marks['fix']} {check.fix}")
    ctx.exit(0 if healthy else 1)


def _marks() -> dict[bool | str | None, str]:
    try:
        "✓✗·→".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return {True: "ok", False: "NO", None: "--", "fix": "->"}
    return {True: "✓", False: "✗", None: "·", "fix": "→"}


def examine(online: bool = False) -> Iterator[Check]:
    """All checks in order; the last one, `chat`, says whether the core works."""
    yield Check("trivium", True, f"{__version__} on Python {platform.python_version()}")
    yield _machine()
    folders = _folders()
    yield folders
    extras = [_extra(name) for name in EXTRAS]
    yield from extras
    runs_models = extras[0].ok is True
    if importlib.util.find_spec("torch"):
        torch = _torch()
        runs_models = runs_models and torch.ok is True
        yield torch
        if torch.ok:
            yield _kernels()
    model = _model()
    remote = _remote(online)
    yield model
    yield remote
    yield _sandbox()
    yield _network()
    yield _chat(runs_models and model.ok is True, remote.ok is True, model, folders)


def _machine() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cache = next(p for p in (files.cache_home(), *files.cache_home().parents) if p.exists())
    return Check(
        "machine",
        True,
        f"{platform.system()} {platform.machine()}, {cores} cores, {format_size(_memory())} "
        f"memory, {format_size(shutil.disk_usage(cache).free)} free for models",
    )


def _memory() -> int:
    """Bytes of memory this process may use: the machine's, or less in a container."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such limit, or "max"
        return memory


def _folders() -> Check:
    homes = (files.config_home(), files.data_home(), files.cache_home(), files.state_home())
    for home in homes:
        existing = next(path for path in (home, *home.parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            return Check(
                "folders", False, f"cannot write {home}", "set TRIVIUM_HOME to a folder of yours"
            )
    try:
        config.read()
    except TriviumError as error:
        return Check("folders", False, str(error), "edit or delete the file")
    return Check("folders", True, f"config {homes[0]}, data {homes[1]}, models {hub.models_home()}")


def _extra(name: str) -> Check:
    versions, missing = [], []
    for distribution in EXTRAS[name]:
        try:
            versions.append(f"{distribution} {importlib.metadata.version(distribution)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(distribution)
    if missing:
        what = {
            "local": "models on this machine",
            "hub": "Hugging Face",
            "plot": "plots",
            "serve": "the server",
        }[name]
        return Check(
            f"[{name}]", None, f"{what}: no {', '.join(missing)}", f"pip install 'trivium[{name}]'"
        )
    return Check(f"[{name}]", True, ", ".join(versions))


def _torch() -> Check:
    """The build of PyTorch and what it can use; an installation can be there and not load."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch
    except Exception as error:
        reason = f"PyTorch does not load: {type(error).__name__}: {error}"
        return Check("torch", False, reason, "pip install --force-reinstall 'trivium[local]'")
    if torch.version.cuda:
        build = f"CUDA {torch.version.cuda}"
    else:
        build = "ROCm" if torch.version.hip else "CPU"
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    flags = _cpu_flags()
    bf16 = "fast" if flags & BF16_FLAGS else "slow" if flags else "unknown speed"
    int8 = "fast" if flags & INT8_FLAGS else "slow" if flags else "unknown speed"
    if not hasattr(torch, "_weight_int8pack_mm"):
        int8 = "not in this version"
    detail = (
        f"{build} build, GPU: {', '.join(devices) or 'none'}, on the CPU bf16 {bf16}, int8 {int8}"
    )
    return Check("torch", True, detail)


def _kernels() -> Check:
    """The compiled kernels, without which a model on a CPU is about three times slower."""
    from trivium.nn import native

    if native.library() is not None:
        return Check("kernels", True, "compiled for this processor")
    if os.environ.get("TRIVIUM_NATIVE") == "0":
        return Check("kernels", None, "off, because TRIVIUM_NATIVE=0", "unset TRIVIUM_NATIVE")
    return Check("kernels", None, "no C compiler that works", "install gcc or clang")


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return set()
    return {
        flag
        for line in re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.M)
        for flag in line.split()
    }


def _model() -> Check:
    try:
        name = os.environ.get("TRIVIUM_MODEL") or config.default_model()
        if name.startswith("remote:"):
            return Check("model", None, f"{name}: at the endpoint, not on this machine")
        return Check("model", True, f"{name}: {hub.find(name)}")
    except TriviumError as error:
        way_out = re.search(r"`(trivium pull [^`]+)`", str(error))
        return Check("model", False, str(error), way_out and way_out[1])


def _remote(online: bool) -> Check:
    """The endpoint of the environment; it is contacted only when `online`."""
    url, key = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
    if not url and not key:
        fix = "set OPENAI_BASE_URL and OPENAI_API_KEY to use one"
        return Check("remote", None, "no endpoint for models elsewhere", fix)
    from trivium.llmos.remote import RemoteModel

    try:
        model = RemoteModel("any", timeout=10.0, retries=0)
        detail = f"{url or 'OpenAI'}, {'with' if key else 'without'} a key"
        if not online:
            return Check("remote", True, f"{detail} (not contacted; --online does)")
        names = model.available()
    except TriviumError as error:
        return Check("remote", False, str(error))
    if not names:
        return Check(
            "remote", None, f"{detail}, names no models", "check OPENAI_API_KEY and the URL"
        )
    return Check("remote", True, f"{detail}, offers {len(names)} models: {', '.join(names[:3])}")


def _sandbox() -> Check:
    from trivium.llmos import sandbox

    level = sandbox.probe()
    fix = None if level.usable else "Linux 5.13 or newer, with Landlock and seccomp switched on"
    return Check("sandbox", level.usable, level.summary, fix)


def _network() -> Check:
    offline = [name for name in ("TRIVIUM_OFFLINE", "HF_HUB_OFFLINE") if huggingface.is_set(name)]
    if offline:
        return Check("network", None, "off for pulls", f"unset {' '.join(offline)} to pull")
    return Check("network", True, "used by pull and remote models only")


def _chat(local: bool, remote: bool, model: Check, folders: Check) -> Check:
    if not folders.ok:  # a conversation is written down as it goes
        return Check("chat", False, folders.detail, folders.fix)
    ways = ["on this machine: `trivium chat`"] * local
    ways += ["at the endpoint: `trivium chat -m remote:NAME`"] * remote
    if ways:
        return Check("chat", True, ", ".join(ways))
    if model.ok is not True:
        fix = model.fix
    else:
        fix = "pip install 'trivium[local]'"
    return Check("chat", False, "no model can answer", fix)
