"""When and where a run takes place, for its record."""

import os
import platform
import time
from typing import Any

import torch

from trivium import __version__


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def surroundings(device: torch.device, processes: int) -> dict[str, Any]:
    cuda = device.type == "cuda"
    return {
        "versions": {
            "trivium": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
    }
