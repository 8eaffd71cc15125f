"""Attacks: changing what was not given, and leaving traps in the workspace."""

import contextlib
import json
import os
import socket

from sandbox_attacks.common import LIBC, WORLD, call, harmless, outside

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
