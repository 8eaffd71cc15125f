"""Attacks: talking to somebody, and touching other processes."""

import contextlib
import ctypes
import os
import signal
import socket
import struct
import time

from sandbox_attacks.common import LIBC, WORLD, X86, call, harmless, opened, outside, text_of

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
