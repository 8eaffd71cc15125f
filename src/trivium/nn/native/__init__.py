"""The native kernels: compiled on first use with the machine's C compiler, kept in the cache.

`library()` is None where there is no compiler, or TRIVIUM_NATIVE=0; everything then runs in
PyTorch, which is also the oracle of the tests.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from trivium.files import cache_home

SOURCE = Path(__file__).with_name("kernels.c")
INCLUDED = ("threads.h", "numbers.h", "products.h", "attention.h")
# Not -ffast-math: linked with it, a library makes the whole process flush small numbers to zero. No
# contraction, which might differ between two places where one function is unrolled.
FLAGS = (
    *("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fopenmp-simd"),
)
ACT_BYTES = 48  # of a block of 32 activations: scale, sums, codes


class Matrix(ctypes.Structure):
    """Quantised weights (rows, cols) in panels, as products.h has them."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("cols", ctypes.c_int32),
        ("parts", ctypes.c_int32),
    )


class Layer(ctypes.Structure):
    NORMS = (
        *("attention_norm", "mlp_norm", "q_norm", "k_norm"),
        *("attention_post_norm", "mlp_post_norm"),
    )
    MATRICES = ("qkv", "out", "gate_up", "down")
    _fields_ = (
        *((name, ctypes.c_void_p) for name in NORMS),
        ("window", ctypes.c_int32),
        *((name, Matrix) for name in MATRICES),
    )


class Model(ctypes.Structure):
    SIZES = (
        *("layers", "width", "heads", "groups", "head_dim", "hidden", "vocab"),
        "activation",
    )
    _fields_ = (
        *((name, ctypes.c_int32) for name in SIZES),
        *((name, ctypes.c_float) for name in ("eps", "scale", "embedding_scale")),
        *((name, ctypes.c_void_p) for name in ("norm", "theta", "window_theta")),
        ("layer", ctypes.POINTER(Layer)),
        ("embedding", Matrix),
        ("head", Matrix),
    )


class Cache(ctypes.Structure):
    _fields_ = (("k", ctypes.c_void_p), ("v", ctypes.c_void_p), ("capacity", ctypes.c_int64))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had."""
    if os.environ.get("TRIVIUM_NATIVE") == "0":
        return None
    path = _compiled()
    return None if path is None else _opened(path)


def _opened(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    found.trivium_forward.restype = ctypes.c_int
    os.register_at_fork(after_in_child=found.trivium_forked)
    return found


def _compiled() -> Path | None:
    return compiled(SOURCE, tuple(SOURCE.with_name(name) for name in INCLUDED))


def compiled(source: Path, included: Sequence[Path] = (), flags: Sequence[str] = ()) -> Path | None:
    """The shared library of a C file for this processor, built if it is not there yet; None if it
    cannot be built. flags: beyond FLAGS, which they may overrule."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    text = b"".join(path.read_bytes() for path in (source, *included))
    options = (*FLAGS, *flags)
    key = hashlib.sha256(text + repr((options, _processor())).encode()).hexdigest()
    path = cache_home() / "native" / f"{source.stem}-{key[:16]}.so"
    if path.is_file():
        return path
    if compiler is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [compiler, *options, "-o", str(built), str(source), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        except (OSError, subprocess.SubprocessError):
            return None
        built.replace(path)
    return path


def _processor() -> str:
    """What -march=native depends on, so that a home shared by machines keeps a build for each."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
