"""Attacks: reading what was not given."""

import contextlib
import ctypes
import os
import struct

from sandbox_attacks.common import LIBC, WORLD, call, harmless, outside, text_of


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
