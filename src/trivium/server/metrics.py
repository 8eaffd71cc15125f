"""What the server counts, in Prometheus' text format, version 0.0.4."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Counts durations by the bounds of SECONDS."""

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*map(str, SECONDS), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """Filled on the event loop only. `gauges` are asked when somebody looks."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.tokens: Counter[str] = Counter()
        self.first_token = Histogram()
        self.duration = Histogram()
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    @contextmanager
    def timed(self) -> Iterator[Callable[[str, int], None]]:
        """Yields what is told the route and the status of a request at its end."""
        start = time.monotonic()

        def measured(route: str, status: int) -> None:
            self.requests[route, status] += 1
            self.duration.add(time.monotonic() - start)

        yield measured

    def text(self) -> str:
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield from _head("trivium_requests_total", "counter", "Requests by route and status.")
        for (route, status), count in sorted(self.requests.items()):
            yield f'trivium_requests_total{{route="{route}",status="{status}"}} {count}'
        yield from _head("trivium_tokens_total", "counter", "Tokens read (cached or not) and made.")
        for kind in ("prompt", "cached", "completion"):
            yield f'trivium_tokens_total{{kind="{kind}"}} {self.tokens[kind]}'
        for name, (help, value) in self.gauges.items():
            yield from _head(name, "gauge", help)
            yield f"{name} {value():g}"
        for name, histogram, help in (
            ("trivium_time_to_first_token_seconds", self.first_token, "From request to token."),
            ("trivium_request_seconds", self.duration, "Duration of requests."),
        ):
            yield from _head(name, "histogram", help)
            yield from histogram.lines(name)


def _head(name: str, kind: str, help: str) -> Iterable[str]:
    return f"# HELP {name} {help}", f"# TYPE {name} {kind}"
