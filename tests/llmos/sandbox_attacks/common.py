"""What the attacks share: the world that the battery made for them, and raw system calls."""

import ctypes
import os
import platform

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
X86 = platform.machine() == "x86_64"
WORLD: dict = {}
HARMLESS: set[str] = set()
# Names of calls: number on x86_64, number on aarch64.
CALLS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "io_uring_setup": (425, 425), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "add_key": (248, 217), "keyctl": (250, 219), "kcmp": (312, 272),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "fsopen": (430, 430),
    "memfd_create": (319, 279), "execveat": (322, 281), "clone": (56, 220), "clone3": (435, 435),
    "setuid": (105, 146), "setresuid": (117, 147), "setgroups": (116, 159), "capset": (126, 91),
    "sched_setaffinity": (203, 122), "ioprio_set": (251, 30), "prlimit64": (302, 261),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "openat2": (437, 437),
    "inotify_init1": (294, 26), "fanotify_init": (300, 262), "init_module": (175, 105),
    "syslog": (103, 116), "sethostname": (170, 161), "swapon": (167, 224), "acct": (163, 89),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "personality": (135, 92), "seccomp": (317, 277), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "tgkill": (234, 131), "fchmodat2": (452, 452),
    "move_pages": (279, 239), "settimeofday": (164, 170), "quotactl": (179, 60),
    "reboot": (169, 142), "kexec_load": (246, 104), "lookup_dcookie": (212, 18),
    "landlock_create_ruleset": (444, 444), "mount_setattr": (442, 442), "vmsplice": (278, 75),
    "process_madvise": (440, 440), "memfd_secret": (447, 447), "get_mempolicy": (239, 236),
}  # fmt: skip


def harmless(function):
    HARMLESS.add(function.__name__)
    return function


def call(name, *arguments):
    """The result of a system call; an OSError when it fails."""
    number = CALLS[name][0 if X86 else 1]
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def opened(name, *arguments):
    """Whether a call that makes a descriptor made one."""
    os.close(call(name, *arguments))
    return True


def outside(name):
    return os.path.join(WORLD["outside"], name)


def text_of(path):
    with open(path, "rb") as file:
        return file.read(4096).decode(errors="replace")
