"""How much confined code may use."""

from dataclasses import dataclass
from typing import Literal

# Why a run ended: by itself, or at the limit of that name.
Reason = Literal["exit", "seconds", "memory", "output", "disk", "processes"]


@dataclass(frozen=True)
class Limits:
    """The limits of one run, or of one call of a Python session.

    seconds: wall-clock time
    cpu_seconds: processor time of each process of a run (a session has only the clock)
    memory: bytes: address space of each process, and resident memory of all together
    processes: processes and threads at one time
    output_bytes: standard output and error together
    disk_bytes: bytes of a single file, and by which all files together may grow
    open_files: per process
    """

    seconds: float = 30.0
    cpu_seconds: int = 60
    memory: int = 2 << 30
    processes: int = 64
    output_bytes: int = 1 << 20
    disk_bytes: int = 1 << 30
    open_files: int = 256

    def describe(self, reason: Reason) -> str:
        """Why a run was stopped, for a model and a person to read."""
        return {
            "exit": "it ended by itself",
            "seconds": f"it was still running after {self.seconds:g} seconds",
            "memory": f"it used more than {self.memory >> 20} MiB of memory",
            "output": f"it printed more than {self.output_bytes >> 10} KiB",
            "disk": f"it wrote more than {self.disk_bytes >> 20} MiB, or the disk is nearly full",
            "processes": f"it ran more than {self.processes} processes and threads",
        }[reason]
