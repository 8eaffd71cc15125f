"""Which walls the kernel of this machine offers, found out by trying them."""

import functools
from dataclasses import dataclass, replace

from trivium.errors import Refused, TriviumError
from trivium.llmos.sandbox import landlock, seccomp
from trivium.llmos.sandbox.libc import architecture


@dataclass(frozen=True)
class Level:
    """`landlock` is its ABI (0: missing). `without_namespaces` says why there are none, "" if there
    are; `failure` what else stands in the way of running code."""

    landlock: int
    seccomp: bool
    namespaces: bool
    without_namespaces: str = ""
    failure: str = ""

    @property
    def missing(self) -> tuple[str, ...]:
        """What has to be there and is not."""
        if self.failure:
            return (self.failure,)
        there = {"Landlock": self.landlock > 0, "seccomp": self.seccomp}
        return tuple(name for name, found in there.items() if not found)

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
        return Level(0, False, False, failure="Linux on x86_64 or aarch64")
    level = Level(landlock.version(), seccomp.available(), namespaces=True)
    if not level.usable:
        return replace(level, namespaces=False)
    from trivium.llmos.sandbox.jail import NamespacesRefused
    from trivium.llmos.sandbox.supervisor import trial

    try:
        try:
            trial(level)
        except NamespacesRefused as error:
            level = replace(level, namespaces=False, without_namespaces=str(error))
            trial(level)
    except TriviumError as error:
        return replace(level, failure=str(error))
    return level
