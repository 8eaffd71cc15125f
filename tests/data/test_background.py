"""Work ahead in a thread that leaves no trace."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from trivium.data.background import ahead


def counting(made: list[int], until: int) -> Iterator[int]:
    for number in range(until):
        made.append(number)
        yield number
    raise KeyError("at the end")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_order_and_errors_stay(count: int) -> None:
    before = set(threading.enumerate())  # tests of other files may have left some
    made: list[int] = []
    got = []
    with pytest.raises(KeyError, match="at the end"):
        for number in ahead(counting(made, 5), count):
            got.append(number)
            time.sleep(0.01)
            assert len(made) <= number + 2 + count  # one more is held by the thread
    assert got == [0, 1, 2, 3, 4]
    assert set(threading.enumerate()) == before


def test_the_thread_ends_with_the_loop() -> None:
    before = set(threading.enumerate())
    made: list[int] = []
    numbers = ahead(counting(made, 10**9), 2)
    assert next(numbers) == 0
    numbers.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) == before and len(made) <= 5


def test_the_thread_ends_with_the_program() -> None:
    script = """
import itertools
from trivium.data.background import ahead
numbers = ahead(itertools.count(), 2)
print(next(numbers))
kept = [numbers]
kept.append(kept)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout == "0\n" and run.stderr == ""
