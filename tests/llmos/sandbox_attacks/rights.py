"""Attacks: more rights, and more processes."""

import contextlib
import ctypes
import errno
import os
import resource
import signal
import struct

from sandbox_attacks.common import CALLS, LIBC, WORLD, X86, call

# More rights


def become_somebody():
    before = (os.getresuid(), os.getresgid(), os.getgroups())
    for change in (
        lambda: os.setuid(0),
        lambda: os.setresuid(0, 0, 0),
        lambda: os.setresuid(65534, 65534, 65534),
        lambda: os.setgid(0),
        lambda: os.setgroups([0]),
        lambda: os.setreuid(0, 0),
        lambda: LIBC.setfsuid(65534),
    ):
        with contextlib.suppress(OSError):
            change()
    return (os.getresuid(), os.getresgid(), os.getgroups()) != before


def raise_capabilities():
    header = struct.pack("=Ii", 0x20080522, 0)
    return call("capset", header, struct.pack("=IIIIII", *[0xFFFFFFFF, 0xFFFFFFFF, 0] * 2)) == 0


def hold_capabilities():
    header, data = struct.pack("=Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    LIBC.capget(header, data)
    return any(data.raw)


def make_namespaces():
    flags = (0x10000000, 0x40000000, 0x00020000, 0x20000000, 0x08000000, 0x04000000, 0x02000000)
    for flag in (*flags, 0x80):
        with contextlib.suppress(OSError):
            return call("unshare", flag) == 0
    return False


def clone_a_namespace():
    child = LIBC.syscall(ctypes.c_long(CALLS["clone"][0 if X86 else 1]), 0x10000011, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    return child > 0


def use_clone3():
    arguments = struct.pack("=QQQQQQQQ", 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    child = LIBC.syscall(ctypes.c_long(435), arguments, len(arguments))
    if child == 0:
        os._exit(0)
    return child > 0


def enter_a_namespace():
    return call("setns", os.open(f"/proc/{WORLD['parent']}/ns/net", os.O_RDONLY), 0) == 0


def mount_something():
    trials = [
        ("mount", b"none", b".", b"tmpfs", 0, None),
        ("mount", b"/", b".", None, 4096, None),
        ("mount", None, b"/", None, 32, None),
        ("umount2", b"/proc", 2),
        ("open_tree", -100, b"/", 1),
        ("fsopen", b"tmpfs", 0),
        ("pivot_root", b".", b"."),
        ("mount_setattr", -100, b"/", 0, struct.pack("=QQQQ", 0, 1, 0, 0), 32),
    ]
    for name, *arguments in trials:
        with contextlib.suppress(OSError):
            call(name, *arguments)
            return name
    return False


def change_root():
    return call("chroot", b".") == 0


def use_parts_of_the_kernel():
    """Calls with harmless arguments that answer EPERM, or ENOSYS, and nothing else."""
    room = ctypes.create_string_buffer(256)
    trials = [
        ("bpf", 0, room, 128),
        ("perf_event_open", room, 0, -1, -1, 0),
        ("userfaultfd", 1),
        ("add_key", b"user", b"trivium", b"x", 1, -1),
        ("keyctl", 0, -3, 0),
        ("fanotify_init", 0x200, 0),
        ("init_module", room, 0, b""),
        ("syslog", 10, None, 0),
        ("sethostname", b"trivium", 7),
        ("swapon", b"nothing", 0),
        ("acct", b"nothing"),
        ("mq_open", b"trivium", 0o102, 0o600, None),
        ("personality", 0x0040000),
        ("seccomp", 1, 0, None),
        ("move_pages", WORLD["parent"], 0, None, None, None, 0),
        ("settimeofday", None, None),
        ("quotactl", 0, None, 0, None),
        ("kexec_load", 0, 0, None, 0),
        ("reboot", 0, 0, 0, None),
        ("vmsplice", 1, None, 0, 0),
        ("memfd_secret", 0),
        ("landlock_create_ruleset", None, 0, 1),
        ("memfd_create", b"x", 0),
        ("setgroups", 0, None),
    ]
    passed = []
    for name, *arguments in trials:
        try:
            call(name, *arguments)
            passed.append(name)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS):
                passed.append(f"{name}: {error.strerror}")
    return passed


def control_the_process():
    """Options of prctl that loosen something."""
    options = [
        (1, 0),
        (4, 1),
        (22, 2),
        (24, 0),
        (28, 0),
        (35, 1),
        (36, 1),
        (0x59616D61, -1),
        (47, 2),
    ]
    return [option for option in options if LIBC.prctl(*map(ctypes.c_ulong, option), 0, 0, 0) >= 0]


def push_input_to_a_terminal():
    import fcntl
    import termios

    for name in (0, 1, 2, "/dev/tty", "/dev/ptmx", "/dev/console"):
        with contextlib.suppress(OSError):
            number = name if isinstance(name, int) else os.open(name, os.O_RDWR)
            fcntl.ioctl(number, termios.TIOCSTI, b"x")
            return name
    return False


def loosen_limits():
    changed = []
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
        with contextlib.suppress(ValueError, OSError):
            soft, hard = resource.getrlimit(kind)
            resource.setrlimit(kind, (hard + 1, hard + 1))
            changed.append(kind)
    return changed


def run_a_file_from_memory():
    number = call("memfd_create", b"x", 0)
    os.write(number, b"#!/bin/true\n")
    call("execveat", number, b"", struct.pack("=Q", 0), struct.pack("=Q", 0), 0x1000)
    return True


def run_a_file_of_the_workspace():
    """Returns its own output if the copy of a program could be started."""
    import shutil

    shutil.copyfile("/bin/echo", "tool")
    with contextlib.suppress(OSError):
        os.chmod("tool", 0o755)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            os.execv("./tool", ["tool"])
        os._exit(77)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 77


# Only in Python mode, which is one process for good


def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    return os.waitpid(child, 0)


def vfork_without_libc():
    number = 58 if X86 else 220
    child = LIBC.syscall(ctypes.c_long(number), signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        LIBC._exit(0)
    return child > 0


def spawn():
    return os.posix_spawn("/bin/true", ["true"], {})


def execute():
    # In a thread: if it worked, the whole session would be gone, and that is seen too.
    os.execv("/bin/true", ["true"])


def start_a_subprocess():
    import subprocess

    return subprocess.run(["true"], check=True)
