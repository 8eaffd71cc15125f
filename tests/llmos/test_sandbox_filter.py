"""The filter of system calls, run by a small interpreter of BPF, for both architectures."""

import itertools
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trivium.llmos.sandbox import libc, seccomp, system_calls

POLICIES = [
    seccomp.Policy(spawn, abi, contained, root)
    for spawn, abi, contained, root in itertools.product(
        (False, True), (1, 7), (False, True), (False, True)
    )
]


def verdict(code: list[seccomp.Instruction], machine: str, number: int, *arguments: int) -> int:
    words = {0: number, 4: seccomp.AUDIT_ARCH[machine]}
    for index in range(6):
        value = arguments[index] if index < len(arguments) else 0
        words[16 + 8 * index] = value & 0xFFFFFFFF
        words[20 + 8 * index] = value >> 32 & 0xFFFFFFFF
    accumulator = place = 0
    while True:
        operation, jump_true, jump_false, constant = code[place]
        place += 1
        if operation == seccomp.LOAD:
            accumulator = words[constant]
        elif operation == seccomp.AND:
            accumulator &= constant
        elif operation == seccomp.RETURN:
            return constant
        else:
            test = {
                seccomp.JUMP_EQUAL: accumulator == constant,
                seccomp.JUMP_GREATER: accumulator > constant,
                seccomp.JUMP_AT_LEAST: accumulator >= constant,
            }[operation]
            place += jump_true if test else jump_false


@pytest.mark.parametrize("machine", libc.ARCHITECTURES)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_filter_allows_what_is_listed_and_nothing_else(
    machine: str, policy: seccomp.Policy
) -> None:
    code = seccomp.program(machine, policy)
    assert len(code) < 4096
    ruled = {rule.name: rule for rule in seccomp.rules(policy)}
    plain = set(system_calls.names("files", "memory", "process", "time", "signals", "sockets"))
    plain |= {name for name, rule in ruled.items() if rule.tests == ()}
    allowed = {system_calls.number(name, machine) for name in plain}
    tested = {system_calls.number(name, machine) for name in set(ruled) - plain}
    for number in [*range(-1, 600), 0x40000000, 0x40000029, 0x7FFFFFFF]:
        number &= 0xFFFFFFFF
        answer = verdict(code, machine, number)
        if number in allowed:
            assert answer == seccomp.ALLOW, number
        elif number not in tested:
            assert answer != seccomp.ALLOW, number
    other = next(name for name in libc.ARCHITECTURES if name != machine)
    assert verdict(code, other, 0) == seccomp.KILL_PROCESS


CLONE_THREAD, NEW_USER = 0x10000, 0x10000000


@pytest.mark.parametrize("machine", libc.ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "arguments", "policy", "allowed"),
    [
        ("clone", (17,), {"spawn": True}, True),
        ("clone", (17,), {"spawn": False}, False),
        ("clone", (0x3D0F00 | CLONE_THREAD,), {"spawn": False}, True),
        ("clone", (NEW_USER | 17,), {"spawn": True}, False),
        ("clone", (NEW_USER | CLONE_THREAD,), {"spawn": False}, False),
        ("execve", (), {"spawn": False}, False),
        ("execve", (), {"spawn": True}, True),
        ("socketpair", (1, 1), {}, True),
        ("socketpair", (1, 1 | 0o2000000), {}, True),
        ("socketpair", (1, 2), {}, False),
        ("socketpair", (2, 1), {}, False),
        ("sendto", (3, 1, 1, 0, 0), {}, True),
        ("sendto", (3, 1, 1, 0, 1), {}, False),
        ("sendto", (3, 1, 1, 0, 1 << 32), {}, False),
        ("openat", (0, 0, os.O_RDONLY | os.O_TRUNC, 0), {}, False),
        ("openat", (0, 0, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, 0o644), {}, True),
        ("openat", (0, 0, os.O_WRONLY | os.O_CREAT, 0o4755), {}, False),
        ("fchmodat", (0, 0, 0o755), {"contained": True}, True),
        ("fchmodat", (0, 0, 0o2755), {"contained": True}, False),
        ("fchmodat", (0, 0, 0o755), {"contained": False}, False),
        ("kill", (1, 9), {"landlock": 6}, True),
        ("kill", (1, 9), {"landlock": 5}, False),
        ("kill", (1, 9), {"landlock": 5, "contained": True}, True),
        ("kill", (0xFFFFFFFF, 9), {"landlock": 5}, False),
        ("kill", (0, 9), {"landlock": 5}, True),
        ("truncate", (), {"landlock": 2}, False),
        ("truncate", (), {"landlock": 3}, True),
        ("prlimit64", (0, 7), {}, True),
        ("prlimit64", (1, 7), {}, False),
        ("ioctl", (0, 0x5412), {}, False),
        ("ioctl", (0, 0x5401), {}, True),
        ("prctl", (15,), {}, True),
        ("prctl", (22,), {}, False),
        ("personality", (0xFFFFFFFF,), {}, True),
        ("personality", (0x0040000,), {}, False),
        ("fcntl", (0, 4), {}, True),
        ("fcntl", (0, 8), {}, False),
        ("clone3", (), {"spawn": True}, False),
    ],
)
def test_arguments_decide(
    machine: str, name: str, arguments: tuple[int, ...], policy: dict, allowed: bool
) -> None:
    whole = seccomp.Policy(
        **{"spawn": True, "landlock": 7, "contained": False, "root": False} | policy
    )
    number = system_calls.number(name, machine)
    assert number is not None
    answer = verdict(seccomp.program(machine, whole), machine, number, *arguments)
    assert (answer == seccomp.ALLOW) == allowed


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6))
@example(0xFFFFFFFF, [0] * 6)
def test_the_filter_always_comes_to_a_verdict(number: int, arguments: list[int]) -> None:
    for machine in libc.ARCHITECTURES:
        code = seccomp.program(machine, POLICIES[0])
        answer = verdict(code, machine, number, *arguments)
        assert answer in {seccomp.ALLOW} | {seccomp.ERRNO | n for n in (0, 1, 25, 38, 95)}
        if number >= system_calls.FIRST_UNKNOWN:
            assert answer != seccomp.ALLOW
