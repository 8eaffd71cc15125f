"""The states of all generators of random numbers that training may draw from."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Randomness:
    """PyTorch's on the CPU and on one device, Python's, and NumPy's."""

    cpu: Tensor
    device: Tensor | None  # None: the device is the CPU, or another that keeps no state of its own
    python: tuple[Any, ...]
    numpy: tuple[Any, ...]

    @classmethod
    def now(cls, device: torch.device) -> "Randomness":
        there = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        state = np.random.get_state(legacy=True)
        assert isinstance(state, tuple)
        return cls(torch.get_rng_state(), there, random.getstate(), state)

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> "Randomness":
        """The states that `seed` gives; those in use stay as they are."""
        with kept(device):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            return cls.now(device)

    def use(self, device: torch.device) -> None:
        torch.set_rng_state(self.cpu)
        if self.device is not None and device.type == "cuda":
            torch.cuda.set_rng_state(self.device, device)
        random.setstate(self.python)
        np.random.set_state(self.numpy)

    def record(self) -> dict[str, Any]:
        """All of it as JSON."""
        version, numbers, gauss = self.python
        kind, keys, *rest = self.numpy
        return {
            "cpu": bytes(self.cpu.tolist()).hex(),
            "device": None if self.device is None else bytes(self.device.tolist()).hex(),
            "python": [version, list(numbers), gauss],
            "numpy": [kind, keys.tolist(), *rest],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Randomness":
        version, numbers, gauss = record["python"]
        kind, keys, *rest = record["numpy"]
        device = record["device"]
        return cls(
            _bytes(record["cpu"]),
            None if device is None else _bytes(device),
            (version, tuple(numbers), gauss),
            (kind, np.array(keys, np.uint32), *rest),
        )


def _bytes(hexadecimal: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(hexadecimal)), dtype=torch.uint8)


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """Whatever is drawn meanwhile, afterwards all generators stand where they stood."""
    before = Randomness.now(device)
    try:
        yield
    finally:
        before.use(device)
