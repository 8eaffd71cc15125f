"""Which walls the kernel of this machine offers, found out by trying them."""

import functools
from dataclasses import dataclass, replace

from trivium.errors import Refused, TriviumError
from trivium.llmos.sandbox import landlock, seccomp
from trivium.llmos.sandbox.libc import architecture


@dataclass(frozen=True)
class Level:
    """`landlock` is its ABI (0: missing); `missing` names what has to be there and is not.

    `without_namespaces` says why there are none, "" when there are.
    """

    landlock: int
    seccomp: bool
    namespaces: bool
    without_namespaces: str = ""
    missing: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        return not self.missing

    @property
    def summary(self) -> str:
        """One line for a person."""
        if self.missing:
            return f"code is not run here: missing {' and '.join(self.missing)}"
        if self.namespaces:
            return f"Landlock ABI {self.landlock}, seccomp, namespaces"
        return f"Landlock ABI {self.landlock}, seccomp, no namespaces ({self.without_namespaces})"

    def require(self) -> None:
        """Raises Refused, naming what is missing, where confined code cannot be run."""
        if self.missing:
            raise Refused(
                f"{self.summary}; the python and terminal tools need Linux 5.13 or newer on "
                "x86_64 or aarch64 with Landlock and seccomp switched on"
            )


@functools.cache
def probe() -> Level:
    """What is available here. The first call starts an empty sandbox, which takes about 0.1 s."""
    try:
        architecture()
    except Refused:
        return Level(0, False, False, missing=("Linux on x86_64 or aarch64",))
    abi, filters = landlock.version(), seccomp.available()
    missing = [name for name, there in (("Landlock", abi), ("seccomp", filters)) if not there]
    if missing:
        return Level(abi, filters, False, missing=tuple(missing))
    from trivium.llmos.sandbox.jail import NamespacesRefused
    from trivium.llmos.sandbox.supervisor import trial

    level = Level(abi, True, True)
    try:
        trial(level)
    except NamespacesRefused as error:
        level = replace(level, namespaces=False, without_namespaces=str(error))
        try:
            trial(level)
        except TriviumError as failure:
            return replace(level, missing=(str(failure),))
    except TriviumError as failure:
        return replace(level, missing=(str(failure),))
    return level
