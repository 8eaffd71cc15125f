"""What a device can do: operations a second, of which a run uses a share (MFU), and its memory.

MFU = FLOPs of a token · tokens/s ÷ peak       (Chowdhery et al. 2022, appendix B)
"""

import resource
import time
from pathlib import Path
from typing import Literal

import torch
from torch import nn

# Dense products in bfloat16 (tensor cores), by what the name holds, and in float32: makers' sheets.
GPUS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250e12, 75e12),
    ("GH200", 989e12, 67e12),
    ("H200", 989e12, 67e12),
    ("H100 NVL", 835e12, 60e12),
    ("H100 PCIe", 756e12, 51e12),
    ("H100", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("A800", 312e12, 19.5e12),
    ("A40", 149.7e12, 37.4e12),
    ("A10G", 70e12, 35e12),
    ("A10", 125e12, 31.2e12),
    ("L40S", 362e12, 91.6e12),
    ("L40", 181e12, 90.5e12),
    ("L4", 121e12, 30.3e12),
    ("V100", 125e12, 15.7e12),
    ("RTX 5090", 209.5e12, 104.8e12),
    ("RTX 4090", 165.2e12, 82.6e12),
    ("RTX 4080", 97.5e12, 48.7e12),
    ("RTX 3090", 71e12, 35.6e12),
    ("RTX 3080", 59.5e12, 29.8e12),
)
SIZE = {"cpu": 1024}  # of the square matrices that are multiplied
SIZE_ELSEWHERE = 8192
USAGE = {  # the file beside the one that limits the memory of a container
    "memory.max": "memory.current",
    "memory/memory.limit_in_bytes": "memory/memory.usage_in_bytes",
}
SECONDS = 0.15  # that a measurement takes at least


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """FLOP/s of one device, and how they are known."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, half, single in GPUS:
            if part.lower() in name.lower():
                return (half if precision == "bfloat16" else single), f"{name}, maker's figure"
    return measured_flops(device, precision), "measured product of matrices"


def measured_flops(device: torch.device, precision: str) -> float:
    """The best of several products of large matrices. It draws no random numbers."""
    size = SIZE.get(device.type, SIZE_ELSEWHERE)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a = torch.ones(size, size, dtype=dtype, device=device)
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def flops_per_token(model: nn.Module, *, length: int, layers: int = 0, width: int = 0) -> float:
    """Of a step of training, forward and backward: 6 N + 12 L C T (Kaplan et al. 2020; Chowdhery
    et al. 2022), of L layers of attention over T tokens of width C.

    N are the weights that multiply: all but those that are only looked up, so the matrix of an
    embedding counts only if it is the head too. What the causal mask leaves out is not subtracted.
    """
    looked_up = {
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Embedding) and not _is_head(model, module)
    }
    weights = sum(p.numel() for p in model.parameters() if p not in looked_up)
    return 6.0 * weights + 12.0 * layers * width * length


def _is_head(model: nn.Module, module: nn.Module) -> bool:
    """Whether an embedding is the head as well (`Headed`: then the head is None)."""
    tied = getattr(model, "embedding", None) is module and hasattr(model, "head")
    return tied and model.head is None


def used_memory(device: torch.device) -> int:
    """Bytes that this process holds: on a GPU those of its tensors, else all of it."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * resource.getpagesize() if status.exists() else 0


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still get; None where nobody knows."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container
        limit, used = Path("/sys/fs/cgroup") / name, Path("/sys/fs/cgroup") / USAGE[name]
        if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
            found.append(int(limit.read_text()) - int(used.read_text()))
    return min(found, default=None)


def fast_precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """bfloat16 where the device has instructions for it, so that it is faster than float32."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"
    return "float32"
