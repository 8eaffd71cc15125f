"""Which files confined code may open, beside the folders it was given."""

import os
import site
import sys
import sysconfig
from pathlib import Path

from trivium.errors import Refused, UsageError

# Programs and libraries; then, one by one, what they ask of the machine and nothing private.
SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/timezone", "/etc/mime.types", "/etc/fonts"),
    *("/etc/alternatives", "/etc/os-release", "/etc/debian_version", "/etc/ssl/openssl.cnf"),
    *("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu/online"),
    *("/sys/devices/system/cpu/possible", "/dev/random", "/dev/urandom"),
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full")


def site_folders() -> list[str]:
    """The folders of installed packages that this interpreter uses."""
    known = {*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("purelib")}
    return [folder for folder in sys.path if folder in known]


def interpreter() -> list[str]:
    """What Python itself reads. Of a prefix only its own folders: it may hold a project as well."""
    parts = ("bin", "lib", "lib64", "share", "pyvenv.cfg")
    prefixes = dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix))
    found = [os.path.join(prefix, part) for prefix in prefixes for part in parts]
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    return [*found, *libraries, *site_folders()]


def rules(writable: list[Path], readable: list[Path], scratch: Path) -> list[tuple[str, str]]:
    """Pairs of a path and the kind of access to it, as `launch.RIGHTS` names them."""
    read = [*SYSTEM, *interpreter(), *map(str, readable)]
    return [
        *((path, "read") for path in dict.fromkeys(read)),
        *((path, "device") for path in DEVICES),
        *((str(path), "write") for path in writable),
        (str(scratch), "scratch"),
    ]


def resolved(folder: Path, *, writable: bool) -> Path:
    """The real path of a folder that confined code may use.

    Raises UsageError when it is not a folder, Refused when it is too much to hand over: all of the
    system or of all persons; or, to write, a person's home or the Python that runs Trivium.
    """
    try:
        real = folder.resolve(strict=True)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}; give an existing folder") from error
    home = Path.home().resolve()
    precious = {home.parent: "the home folders"} | (
        {
            home: "your home folder",
            Path(sys.prefix).resolve(): "the Python that runs Trivium",
            Path(sys.base_prefix).resolve(): "the Python that runs Trivium",
            Path(__file__).resolve().parents[3]: "Trivium itself",
        }
        if writable
        else {}
    )
    for path, what in precious.items():
        if path.is_relative_to(real):
            raise Refused(
                f"code may not {'write' if writable else 'read'} in all of {folder}, which holds "
                f"{what}: choose a folder inside it"
            )
    if writable and not real.is_dir():
        raise UsageError(f"{folder} is not a folder: give one that code may write in")
    return real


def remove(folder: Path) -> None:
    """Remove a folder that confined code wrote in, however deep it nested or locked its folders."""
    os.chmod(folder, 0o700)
    spare = 0
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            # Lift the folders within up to the top: no path ever gets long.
            for inner in list(os.scandir(entry.path)):
                if inner.is_dir(follow_symlinks=False):
                    spare += 1
                    os.chmod(inner.path, 0o700)
                    os.rename(inner.path, folder / f".{spare}.{os.getpid()}.lifted")
                else:
                    os.unlink(inner.path)
            os.rmdir(entry.path)
    os.rmdir(folder)
