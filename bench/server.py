"""How fast the server answers a crowd: tokens a second and the time to the first one.

    python bench/server.py [--model NAME] [--threads N] [--tokens 64] [--clients 1 4 16]

Each client asks for one streamed answer after the other, of a prompt of its own. The same is asked
of `llama_cpp.server` on the same GGUF file and as many threads, if it is installed, and the ratios
are printed. Both run as processes of their own, one after the other.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from trivium import hub

TOPICS = (
    "rivers stars bread trains glass winter music bees paper ships moss clocks salt maps owls tea"
)
ANSWERS = 3  # of each client


@dataclass(frozen=True)
class Figures:
    tokens_per_second: float
    first: tuple[float, ...]  # seconds, ascending

    def percentile(self, share: float) -> float:
        return self.first[min(int(share * len(self.first)), len(self.first) - 1)]


async def answer(http: httpx.AsyncClient, model: str, topic: str, tokens: int) -> tuple[float, int]:
    """Seconds to the first token, and how many were made."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Tell me a long story about {topic}."}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start, first, made, counted = time.monotonic(), 0.0, 0, 0
    async with http.stream("POST", "/v1/chat/completions", json=body) as stream:
        stream.raise_for_status()
        async for line in stream.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            counted = (chunk.get("usage") or {}).get("completion_tokens", counted)
            if any(choice["delta"].get("content") for choice in chunk["choices"]):
                first = first or time.monotonic() - start
                made += 1
    return first, counted or made


async def crowd(url: str, model: str, clients: int, tokens: int) -> Figures:
    topics = TOPICS.split()
    async with httpx.AsyncClient(
        base_url=url, timeout=600, limits=httpx.Limits(max_connections=clients), trust_env=False
    ) as http:

        async def client(i: int) -> list[tuple[float, int]]:
            topic = topics[i % len(topics)]
            return [
                await answer(http, model, f"{topic}, part {clients}.{n}", tokens)
                for n in range(ANSWERS)
            ]

        start = time.monotonic()
        done = [
            pair for pairs in await asyncio.gather(*map(client, range(clients))) for pair in pairs
        ]
        seconds = time.monotonic() - start
    return Figures(sum(made for _, made in done) / seconds, tuple(sorted(t for t, _ in done)))


@contextmanager
def process(command: list[str], url: str, threads: int) -> Iterator[None]:
    """A server, from when it answers until it has ended."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(1200):
            if server.poll() is not None:
                sys.exit(f"{command[2]} ended with {server.returncode}")
            try:
                if httpx.get(f"{url}/v1/models", trust_env=False).is_success and ready(url):
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait(30)


def ready(url: str) -> bool:
    return httpx.get(f"{url}/health", trust_env=False).status_code != 503


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(
    command: list[str], port: int, model: str, options: argparse.Namespace
) -> list[Figures]:
    url = f"http://127.0.0.1:{port}"
    with process(command, url, options.threads):
        asyncio.run(crowd(url, model, 1, 4))  # warm up
        return [asyncio.run(crowd(url, model, n, options.tokens)) for n in options.clients]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=hub.DEFAULT)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    options = parser.parse_args()
    path = hub.find(options.model)
    port, threads = str(free_port()), str(options.threads)
    ours = [sys.executable, "-m", "trivium", "serve", "-m", options.model, "--port", port]
    ours += ["--threads", threads, "--max-concurrent", "16"]
    name = options.model if options.model in hub.CATALOGUE else Path(options.model).stem
    found = {"trivium": measure(ours, int(port), name, options)}
    if (
        all(map(importlib.util.find_spec, ("llama_cpp", "sse_starlette")))
        and path.suffix == ".gguf"
    ):
        port = str(free_port())
        theirs = [sys.executable, "-m", "llama_cpp.server", "--model", str(path), "--port", port]
        theirs += ["--n_threads", threads, "--n_ctx", "4096", "--model_alias", name]
        theirs += ["--interrupt_requests", "False"]  # else a new client cuts off the one before
        found["llama_cpp.server"] = measure(theirs, int(port), name, options)
    else:
        print("llama_cpp.server is not installed (or the model is no GGUF file): ours only")
    print(
        f"{options.model}, {threads} threads, {ANSWERS} answers of {options.tokens} tokens a client"
    )
    print(f"{'server':18}{'clients':>8}{'tokens/s':>10}{'first p50':>11}{'p95':>9}")
    for server, rows in found.items():
        for clients, row in zip(options.clients, rows, strict=True):
            print(
                f"{server:18}{clients:8}{row.tokens_per_second:10.1f}"
                f"{statistics.median(row.first) * 1e3:8.0f} ms{row.percentile(0.95) * 1e3:6.0f} ms"
            )
    if len(found) == 2:
        for clients, our, their in zip(options.clients, *found.values(), strict=True):
            rate = our.tokens_per_second / their.tokens_per_second
            wait = statistics.median(our.first) / statistics.median(their.first)
            print(f"ratio at {clients:2} clients: {rate:.2f} x tokens/s, {wait:.2f} x first p50")


if __name__ == "__main__":
    main()
