"""What running code uses, all its processes together: the limits that no rlimit can hold."""

import contextlib
import errno
import os
import resource
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from trivium.llmos.sandbox.launch import descendants
from trivium.llmos.sandbox.limits import Limits

# Never fill a disk to the brim, whoever else is writing to it.
DISK_RESERVE = 256 << 20
FILES = 100_000
CLOCK_GRAIN = 20_000_000  # nanoseconds by which the times of files may lag behind the clock
# The keeper's process 1, and one that has ended and is not reaped yet.
# The keeper, and what a process maps twice: below this, it meets its own limit as a MemoryError.
SPARE_MEMORY = 64 << 20  # bytes
SPARE_PROCESSES = 2


class Watch:
    """Looks at the processes below `keeper` and at what the folders grow by from now on."""

    def __init__(self, keeper: int, folders: Sequence[Path], limits: Limits) -> None:
        self.keeper = keeper
        self.folders = folders
        self.limits = limits
        self.page = resource.getpagesize()
        self.restart()

    def restart(self) -> None:
        """Count growth from this moment."""
        self.since = time.time_ns() - CLOCK_GRAIN
        self.next_count = 0.0
        # One folder for each file system.
        self.disks = {os.stat(folder).st_dev: folder for folder in self.folders}
        self.free = {device: _free(folder) for device, folder in self.disks.items()}

    def breach(self) -> Literal["memory", "processes", "disk"] | None:
        """The limit that is exceeded now, if one is."""
        memory, tasks = self._processes()
        if memory > self.limits.memory + SPARE_MEMORY:
            return "memory"
        if tasks > self.limits.processes + SPARE_PROCESSES:
            return "processes"
        return "disk" if self._disk_is_exceeded() else None

    def _processes(self) -> tuple[int, int]:
        """Resident bytes and number of processes and threads."""
        memory = tasks = 0
        for pid in descendants(self.keeper):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
                # Fields 20 and 24 of proc_pid_stat(5); the name before them may hold spaces.
                fields = file.read().rpartition(b")")[2].split()
                tasks += int(fields[17])
                memory += int(fields[21]) * self.page
        return memory, tasks

    def _disk_is_exceeded(self) -> bool:
        for device, folder in self.disks.items():
            bytes_before, files_before = self.free[device]
            bytes_now, files_now = _free(folder)
            if files_before - files_now > FILES:
                return True
            if bytes_now < DISK_RESERVE and bytes_now < bytes_before:
                return True
        now = time.monotonic()
        if now < self.next_count:
            return False
        written = self._changed_bytes() + self._nameless_bytes()
        # Counting a full folder takes a while: not more than a tenth of the time.
        self.next_count = time.monotonic() + 10 * (time.monotonic() - now)
        return written > self.limits.disk_bytes

    def _changed_bytes(self) -> int:
        """Bytes of the files that changed since the start; no program can set their ctime."""
        total = 0
        waiting = [str(folder) for folder in self.folders]
        while waiting:
            try:
                with os.scandir(waiting.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                            continue
                        found = entry.stat(follow_symlinks=False)
                        if found.st_ctime_ns >= self.since:
                            total += found.st_blocks * 512
            except OSError as error:
                # Only made to hide: what lies deeper than a path can name, nobody can count.
                if error.errno == errno.ENAMETOOLONG:
                    return sys.maxsize
        return total

    def _nameless_bytes(self) -> int:
        """Bytes of files that are open but have no name any more."""
        sizes: dict[tuple[int, int], int] = {}
        for pid in descendants(self.keeper):
            with contextlib.suppress(OSError):
                for number in os.listdir(f"/proc/{pid}/fd"):
                    found = os.stat(f"/proc/{pid}/fd/{number}")
                    if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
                        sizes[found.st_dev, found.st_ino] = found.st_blocks * 512
        return sum(sizes.values())


def _free(folder: Path) -> tuple[int, int]:
    """Free bytes and free files of the folder's file system."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize, found.f_favail
