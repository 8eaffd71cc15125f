"""Work ahead: what an iterator gives, made by a thread while the caller uses what came before.

The order stays, an exception is raised where it belongs, and the thread ends with the loop that
reads it, with an exception in that loop, and with the program.
"""

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
POLL = 0.2  # seconds between looks whether anybody still waits


def ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """The items; up to `count` are made before they are asked for. 0: without a thread."""
    if not count:
        yield from items
        return
    box: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(count)
    stop = threading.Event()

    def put(thing: tuple[T] | BaseException | None) -> bool:
        # A daemon thread would be killed inside the tokenizer when Python ends. This one keeps
        # Python from ending, so it has to notice by itself that the main thread is through.
        while not stop.is_set() and threading.main_thread().is_alive():
            with contextlib.suppress(queue.Full):
                box.put(thing, timeout=POLL)
                return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item,)):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="data")
    thread.start()
    try:
        while (thing := box.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            yield thing[0]
    finally:
        stop.set()
        with contextlib.suppress(queue.Empty):
            while True:
                box.get_nowait()
        thread.join()
