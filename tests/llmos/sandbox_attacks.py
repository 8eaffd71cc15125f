"""What untrusted code may try. This file runs inside the sandbox, where every function must fail.

An attack returns something true, best the stolen text, when it believes that it reached its goal;
the battery also looks at the world for traces. Those in HARMLESS touch nothing but the world that
the battery made for them, so they are run without a sandbox too, where every one must succeed:
that shows that the traces would be seen.

Usage: python sandbox_attacks.py WORLD.json NAME...   prints one JSON line for each attack
"""

import contextlib
import ctypes
import errno
import json
import os
import platform
import resource
import signal
import socket
import struct
import sys
import time

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


# Reading what was not given


def read_inherited_descriptors():
    """Comes first, for others leave theirs open. 3 and 4 are the session's own pipes."""
    found = []
    for number in range(5, 1024):
        with contextlib.suppress(OSError):
            os.fstat(number)
            found.append(number)
    return found


@harmless
def read_secret():
    return text_of(outside("secret.txt"))


@harmless
def read_secret_with_libc():
    number = LIBC.open(outside("secret.txt").encode(), os.O_RDONLY)
    buffer = ctypes.create_string_buffer(200)
    LIBC.read(number, buffer, 200)
    return number >= 0 and buffer.value.decode()


@harmless
def read_secret_from_its_folder():
    here = os.getcwd()
    os.chdir(WORLD["outside"])
    try:
        return text_of("secret.txt")
    finally:
        os.chdir(here)


@harmless
def read_secret_through_a_path_descriptor():
    folder = os.open(WORLD["outside"], os.O_PATH)
    return os.read(os.open("secret.txt", os.O_RDONLY, dir_fd=folder), 100).decode()


def read_secret_through_a_link_in_the_workspace():
    os.symlink(outside("secret.txt"), "link")
    return text_of("link")


@harmless
def read_secret_through_a_link_in_tmp():
    link = os.path.join(os.environ.get("TMP", WORLD["outside"]), "tmp link")
    os.symlink(outside("secret.txt"), link)
    try:
        return text_of(link)
    finally:
        os.unlink(link)


@harmless
def read_secret_through_dots():
    return text_of(os.path.join("..", "..", "outside", "secret.txt"))


@harmless
def read_secret_through_proc_root():
    return text_of("/proc/self/root" + outside("secret.txt"))


@harmless
def read_secret_through_the_parents_root():
    return text_of(f"/proc/{WORLD['parent']}/root" + outside("secret.txt"))


@harmless
def read_secret_with_openat2():
    how = struct.pack("=QQQ", os.O_RDONLY, 0, 0)
    number = call("openat2", -100, outside("secret.txt").encode(), how, len(how))
    return os.read(number, 100).decode()


def read_secret_by_handle():
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 136)
    mount = ctypes.c_int()
    call("name_to_handle_at", -100, outside("secret.txt").encode(), handle, ctypes.byref(mount), 0)
    folder = os.open(".", os.O_RDONLY)
    return os.read(call("open_by_handle_at", folder, handle, os.O_RDONLY), 100).decode()


@harmless
def list_outside():
    return os.listdir(WORLD["outside"])


@harmless
def watch_outside():
    number = call("inotify_init1", 0)
    return LIBC.inotify_add_watch(number, WORLD["outside"].encode(), 0x3FF) >= 0


@harmless
def link_secret_into_the_workspace():
    os.link(outside("secret.txt"), "hard")
    return text_of("hard")


@harmless
def take_a_file_into_the_workspace():
    os.rename(outside("loose.txt"), "loose.txt")
    return True


def read_shadow():
    return text_of("/etc/shadow")


def read_passwd():
    return text_of("/etc/passwd")


def list_home():
    return os.listdir(WORLD["home"])


def read_disk():
    for name in ("/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/port"):
        with contextlib.suppress(OSError):
            return os.close(os.open(name, os.O_RDONLY)) or True
    return False


def read_environment_of_the_parent():
    return WORLD["token"] in text_of(f"/proc/{WORLD['parent']}/environ")


def read_own_proc():
    return text_of("/proc/self/environ") + text_of("/proc/self/maps")


def read_inherited_environment():
    return [name for name in os.environ if name.startswith("TRIVIUM_ATTACK")]


# Changing what was not given


@harmless
def write_outside():
    with open(outside("new.txt"), "w") as file:
        return file.write("x")


@harmless
def append_outside():
    with open(outside("target.txt"), "a") as file:
        return file.write("x")


@harmless
def make_a_nameless_file_outside():
    return os.write(os.open(WORLD["outside"], os.O_TMPFILE | os.O_WRONLY), b"x")


@harmless
def truncate_outside():
    os.truncate(outside("target.txt"), 0)
    return True


@harmless
def truncate_a_readable_file():
    os.close(os.open(os.path.join(WORLD["shared"], "shared.txt"), os.O_RDONLY | os.O_TRUNC))
    return os.stat(os.path.join(WORLD["shared"], "shared.txt")).st_size == 0


@harmless
def write_in_the_readable_folder():
    with open(os.path.join(WORLD["shared"], "new.txt"), "w") as file:
        return file.write("x")


@harmless
def delete_outside():
    os.unlink(outside("doomed.txt"))
    return True


@harmless
def make_a_folder_outside():
    os.mkdir(outside("folder"))
    return True


@harmless
def remove_a_folder_outside():
    os.rmdir(outside("empty"))
    return True


@harmless
def link_outside():
    os.symlink("/etc", outside("link"))
    return True


@harmless
def move_a_file_out():
    with open("mine.txt", "w") as file:
        file.write("x")
    os.rename("mine.txt", outside("mine.txt"))
    return True


@harmless
def link_a_file_out():
    with open("mine.txt", "w") as file:
        file.write("x")
    os.link("mine.txt", outside("linked.txt"))
    return True


@harmless
def chmod_outside():
    os.chmod(outside("target.txt"), 0o777)
    return False


@harmless
def chmod_a_readable_file():
    number = os.open(os.path.join(WORLD["shared"], "shared.txt"), os.O_RDONLY)
    os.fchmod(number, 0o777)
    return False


@harmless
def chown_outside():
    os.chown(outside("target.txt"), os.geteuid(), os.getegid())
    return False


@harmless
def set_times_outside():
    os.utime(outside("target.txt"), (0, 0))
    return False


@harmless
def set_attribute_outside():
    os.setxattr(outside("target.txt"), "user.trivium", b"x")
    return True


@harmless
def set_attribute_of_a_readable_file():
    number = os.open(os.path.join(WORLD["shared"], "shared.txt"), os.O_RDONLY)
    os.setxattr(number, "user.trivium", b"x")
    return True


def write_packages():
    with open(os.path.join(os.path.dirname(json.__file__), "attack.py"), "w") as file:
        return file.write("")


def write_shared_memory():
    path = f"/dev/shm/trivium-attack-{os.getpid()}"
    with open(path, "w") as file:
        file.write("x")
    os.unlink(path)
    return True


def write_kernel_settings():
    with open("/proc/sys/kernel/domainname", "r+") as file:
        return file.write(file.read()) > 0


# Leaving a trap in the workspace: the battery looks for links, pipes, sockets and set-user-id bits


@harmless
def leave_a_link():
    os.symlink("/etc/passwd", "notes.txt")
    return True


@harmless
def leave_a_link_made_in_tmp():
    made = os.path.join(os.environ.get("TMP", WORLD["outside"]), "made")
    os.symlink("/etc/passwd", made)
    try:
        os.rename(made, "moved")
    finally:
        with contextlib.suppress(OSError):
            os.unlink(made)
    return True


@harmless
def leave_a_pipe():
    os.mkfifo("pipe")
    return True


@harmless
def leave_a_socket():
    socket.socket(socket.AF_UNIX).bind("socket")
    return True


def leave_a_device():
    os.mknod("device", 0o600 | 0o020000, os.makedev(1, 3))
    return True


@harmless
def leave_a_set_user_id_file_by_chmod():
    with open("setuid1", "w"):
        os.chmod("setuid1", 0o4755)
    return os.stat("setuid1").st_mode & 0o6000


@harmless
def leave_a_set_user_id_file_by_fchmod():
    with open("setuid2", "w") as file:
        os.fchmod(file.fileno(), 0o2755)
    return os.stat("setuid2").st_mode & 0o6000


@harmless
def leave_a_set_user_id_file_by_open():
    os.close(os.open("setuid3", os.O_CREAT | os.O_WRONLY, 0o4755))
    return os.stat("setuid3").st_mode & 0o6000


@harmless
def leave_a_set_user_id_file_by_creat():
    LIBC.creat(b"setuid4", 0o4755)
    return os.stat("setuid4").st_mode & 0o6000


def leave_a_set_user_id_file_by_fchmodat2():
    with open("setuid5", "w"):
        call("fchmodat2", -100, b"setuid5", 0o4755, 0)
    return os.stat("setuid5").st_mode & 0o6000


# Talking to somebody


@harmless
def connect_tcp():
    with socket.create_connection(("127.0.0.1", WORLD["tcp"]), 1) as link:
        return link.send(b"x")


@harmless
def listen_tcp():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.listen() is None


@harmless
def send_udp():
    with socket.socket(type=socket.SOCK_DGRAM) as link:
        return link.sendto(b"x", ("127.0.0.1", WORLD["udp"]))


@harmless
def connect_unix():
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(outside("stream"))
        return link.send(b"x")


@harmless
def connect_abstract():
    with socket.socket(socket.AF_UNIX) as link:
        link.connect("\0" + WORLD["abstract"])
        return link.send(b"x")


@harmless
def send_from_a_datagram_pair():
    mine, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return mine.sendto(b"x", outside("datagram"))


def send_from_a_stream_pair():
    mine, _ = socket.socketpair()
    return mine.sendto(b"x", outside("datagram"))


def reconnect_a_pair():
    mine, _ = socket.socketpair()
    mine.connect(outside("stream"))
    return mine.send(b"x")


def open_other_sockets():
    kinds = [
        *((socket.AF_NETLINK, socket.SOCK_RAW, n) for n in (0, 9, 15)),
        (socket.AF_INET, socket.SOCK_RAW, 1),
        (socket.AF_PACKET, socket.SOCK_RAW, 0),
        (40, socket.SOCK_STREAM, 0),  # vsock
        (38, socket.SOCK_SEQPACKET, 0),  # kernel crypto
        (socket.AF_INET6, socket.SOCK_STREAM, 0),
    ]
    for kind in kinds:
        with contextlib.suppress(OSError):
            socket.socket(*kind).close()
            return kind
    return False


def open_a_socket_as_x32():
    return X86 and LIBC.syscall(ctypes.c_long(0x40000000 | 41), 2, 1, 0) >= 0


def use_io_uring():
    return opened("io_uring_setup", 4, ctypes.create_string_buffer(120))


# Other processes


@harmless
def signal_the_neighbour():
    os.kill(WORLD["neighbour"], signal.SIGUSR1)
    return True


@harmless
def signal_a_thread_of_the_neighbour():
    return call("tgkill", WORLD["neighbour"], WORLD["neighbour"], signal.SIGUSR1) == 0


@harmless
def queue_a_signal():
    information = struct.pack("=iii", signal.SIGUSR1, 0, -1).ljust(128, b"\0")
    return call("rt_sigqueueinfo", WORLD["neighbour"], signal.SIGUSR1, information) == 0


@harmless
def signal_through_a_pidfd():
    number = call("pidfd_open", WORLD["neighbour"], 0)
    return call("pidfd_send_signal", number, signal.SIGUSR1, None, 0) == 0


@harmless
def signal_by_owning_a_pipe():
    import fcntl

    reader, writer = socket.socketpair()
    fcntl.fcntl(reader, fcntl.F_SETOWN, WORLD["neighbour"])
    fcntl.fcntl(reader, 10, signal.SIGUSR1)  # F_SETSIG
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
    writer.send(b"x")
    time.sleep(0.05)
    return False


def signal_everybody():
    # SIGURG does nothing to those who do not expect it.
    os.kill(-1, signal.SIGURG)
    return False


def signal_the_parent():
    os.kill(WORLD["parent"], signal.SIGUSR1)
    return True


def signal_my_own_parent():
    if os.getppid() > 1:  # the keeper; with namespaces it cannot be named
        os.kill(os.getppid(), signal.SIGTERM)
    return False


@harmless
def trace_the_neighbour():
    return call("ptrace", 0x4206, WORLD["neighbour"], 0, 0) == 0  # PTRACE_SEIZE


@harmless
def read_the_neighbours_memory():
    buffer = ctypes.create_string_buffer(64)
    local = struct.pack("=QQ", ctypes.addressof(buffer), 64)
    remote = struct.pack("=QQ", WORLD["address"], 64)
    call("process_vm_readv", WORLD["neighbour"], local, 1, remote, 1, 0)
    return buffer.raw.decode(errors="replace")


@harmless
def read_the_neighbours_memory_in_proc():
    with open(f"/proc/{WORLD['neighbour']}/mem", "rb", 0) as file:
        file.seek(WORLD["address"])
        return file.read(64).decode(errors="replace")


@harmless
def read_the_neighbours_environment():
    return text_of(f"/proc/{WORLD['neighbour']}/environ")


@harmless
def take_the_neighbours_descriptor():
    number = call("pidfd_open", WORLD["neighbour"], 0)
    taken = call("pidfd_getfd", number, WORLD["descriptor"], 0)
    return os.pread(taken, 100, 0).decode()


@harmless
def open_the_neighbours_descriptor():
    return text_of(f"/proc/{WORLD['neighbour']}/fd/{WORLD['descriptor']}")


@harmless
def compare_with_the_neighbour():
    return call("kcmp", os.getpid(), WORLD["neighbour"], 1, 0, 0) >= 0


@harmless
def limit_the_neighbour():
    limits = struct.pack("=QQ", 64, 64)
    return call("prlimit64", WORLD["neighbour"], 7, limits, None) == 0


@harmless
def slow_the_neighbour():
    os.setpriority(os.PRIO_PROCESS, WORLD["neighbour"], 19)
    return True


@harmless
def pin_the_neighbour():
    os.sched_setaffinity(WORLD["neighbour"], {0})
    return True


@harmless
def idle_the_neighbours_disk():
    return call("ioprio_set", 1, WORLD["neighbour"], 3 << 13) == 0


def use_shared_memory_of_system_v():
    for name, extra in (("shmget", (4096,)), ("semget", (1,)), ("msgget", ())):
        with contextlib.suppress(OSError):
            return call(name, 0, *extra, 0o1600) >= 0
    return False


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


PYTHON_ONLY = (fork, vfork_without_libc, spawn, execute, start_a_subprocess)
_HELPERS = {"harmless", "call", "opened", "outside", "text_of", "attempt", "main"}
ATTACKS = [
    name
    for name, value in list(globals().items())
    if callable(value) and getattr(value, "__module__", "") == __name__ and name not in _HELPERS
]


def attempt(name):
    """Run one attack and print what came of it."""
    with contextlib.suppress(FileExistsError):
        os.makedirs(name)
    os.chdir(name)
    try:
        claim = globals()[name]()
        record = {"name": name, "claim": claim and str(claim)[:4000], "error": ""}
    except BaseException as error:
        record = {"name": name, "claim": None, "error": f"{type(error).__name__}: {error}"[:200]}
    os.chdir("..")
    print(json.dumps(record), flush=True)


def main():
    with open(sys.argv[1]) as file:
        WORLD.update(json.load(file))
    for name in sys.argv[2:]:
        attempt(name)
        sys.stdin.readline()  # without a sandbox, the battery looks for traces now


if __name__ == "__main__" and len(sys.argv) > 2:
    main()
