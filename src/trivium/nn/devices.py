"""Which device to compute on."""

import torch

from trivium.errors import UsageError


def pick_device(device: str) -> torch.device:
    """ "auto" is the first of cuda, mps, cpu that is there."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0][:200]
        raise UsageError(f"device {device!r} cannot be used here: {reason}") from None
    return chosen
