"""The decoding step on a GPU: captured as a CUDA graph at once, fused by PyTorch's compiler later.

A step of a small model is hundreds of kernels, and launching them takes longer than running them. A
graph launches all of them with one call, but only over tensors whose shapes and addresses never
change. So the sequences take seats in a `Pool`, of which their `KVCache` becomes a view, and there
is one graph for each size of batch (1, 2, 4, 8, 16) and each span of positions (512, 1024, …).

The same result alone or in a batch: matrix products always have 16 rows, filled up with padding.
Only attention, which treats every row by itself, follows the batch.

The compiler runs in a process of its own, which leaves what it makes in the cache on the disk: a
thread would slow the tokens made meanwhile, and a program that ends while a thread compiles may
crash. When it is done, the step is swapped between two tokens. Blocks are compiled, without their
attention; all layers of a kind share the code, whatever the batch and the span.

R rows (16), B batch ≤ R, S span, G heads of keys and values, D channels of a head, V vocabulary.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trivium import files
from trivium.language.fixed_step import (
    SPARE,
    Pool,
    View,
    angle_tables,
    angles_at,
    fixed_blocks,
    look,
    parameter_of,
)
from trivium.language.transformer import BLOCKS, POSITIONS, Transformer, TransformerConfig
from trivium.nn.attention import KVCache
from trivium.nn.packed import PackedLinear
from trivium.nn.positions import LearnedPosition
from trivium.nn.quantized import Int8Linear

ROWS = 16  # of every matrix product, and the most sequences of a batch
SPAN = 512  # positions; the shortest span
PATIENCE = 64  # steps before the compiler is started: who asks for less does not pay for it
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.05}  # of the largest value
CHILD = "from trivium.language.compiled_step import fill_cache; fill_cache()"

log = logging.getLogger(__name__)


class CompiledStep:
    """Continues several sequences by one token each. Made by `of`.

    Whatever fails (a capture, memory, the compiler) is said in one line of the log, and the work
    goes on without it; at worst, by the ordinary path of the model.
    """

    def __init__(self, model: Transformer, *, rows: int = ROWS, patience: int = PATIENCE) -> None:
        self.model, self._rows, self._patience = model, rows, patience
        self._device = parameter_of(model).device
        self._blocks = self._plain = fixed_blocks(model.layers)
        self._pool: Pool | None = None
        self._inputs = torch.zeros(3, rows, dtype=torch.long, device=self._device)
        self._angles: Any = None
        self._graphs: dict[tuple[int, int], Callable[[], Tensor]] = {}
        self._memory: Any = None  # one for all graphs, since only one runs at a time
        self._steps = 0
        self._proved = self._broken = False
        self.compiler = Compiler(model, self._plain, rows)

    @classmethod
    def of(cls, model: nn.Module) -> "CompiledStep | None":
        """A step for a Transformer on a CUDA device whose weights are floats; else None.

        None on a CPU: there is no launching to save there, and attention would look at the whole
        span. Measured on two cores with SmolLM2 in bfloat16 and a GPT-2 of 6 layers in float32:
        with compiled blocks 0.3 to 0.7 times, compiled as a whole 0.5 to 0.8 times the speed of the
        ordinary path.
        """
        if not isinstance(model, Transformer):
            return None
        rounded = any(isinstance(part, PackedLinear | Int8Linear) for part in model.modules())
        if parameter_of(model).device.type != "cuda" or rounded or not model.config.causal:
            return None
        return cls(model)

    @torch.inference_mode()
    def __call__(self, tokens: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """Append a token to each cache; float32 logits (B, V). No cache may be given twice."""
        if len(tokens) > self._rows:
            n = self._rows
            return torch.cat([self(tokens[:n], caches[:n]), self(tokens[n:], caches[n:])])
        while not self._broken:
            try:
                logits = self._step(tokens, caches)
            except RuntimeError as error:  # torch's errors of memory, capture and compiler
                self._step_down(error)
            else:
                for cache in caches:
                    cache.advance(1)
                return logits
        return self._ordinary(tokens, caches)

    def _ordinary(self, tokens: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        rows = []
        for token, cache in zip(tokens, caches, strict=True):
            ids = torch.tensor([[token]], device=self._device)
            rows.append(self.model(ids, cache)[0, -1].float())
        return torch.stack(rows)

    def _step(self, tokens: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """The logits; the caches are written to, but not yet longer."""
        self._steps += 1
        if self._steps == self._patience:
            self.compiler.start()
        if (blocks := self.compiler.take()) is not None:
            self._use(blocks)
        expected = None if self._proved else self._expected(tokens, caches)
        longest = max(cache.length for cache in caches) + 1
        batch = _power(len(caches))
        pool = self._roomy(batch, _power(max(longest, SPAN)))
        rows = pool.seat(caches, batch)
        inputs = [(0, 0, pool.capacity)] * self._rows  # padding writes behind the last position
        for row, token, cache in zip(rows, tokens, caches, strict=True):
            inputs[row] = (token, cache.length, cache.length)
        self._inputs.copy_(torch.tensor(inputs).T)
        logits = self._run(batch, _power(max(longest, SPAN)))[rows]
        if expected is not None:
            _compare(logits, expected, parameter_of(self.model).dtype)
            self._proved = True
        return logits

    def _expected(self, tokens: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """What the model itself says: a step is trusted after it has said the same once."""
        lengths = [cache.length for cache in caches]
        try:
            return self._ordinary(tokens, caches)
        finally:
            for cache, length in zip(caches, lengths, strict=True):
                cache.truncate(length)

    def _roomy(self, rows: int, capacity: int) -> Pool:
        pool = self._pool
        if pool is None or pool.rows < rows or pool.capacity < capacity:
            if pool is not None:
                rows, capacity = max(rows, pool.rows), max(capacity, pool.capacity)
                pool.vacate()
            self._forget_graphs()
            self._pool = pool = None  # its memory is free before more is asked for
            self._pool = pool = Pool(self.model, rows, capacity)
            self._angles = angle_tables(self.model.position, capacity, parameter_of(self.model))
        return pool

    def _run(self, batch: int, span: int) -> Tensor:
        compute = partial(self._compute, batch, span)
        if self._device.type != "cuda":
            return compute()
        graph = self._graphs.get((batch, span))
        if graph is None:
            if not self.compiler.busy.acquire(blocking=False):
                return compute()  # capture when nothing else is going on
            try:
                graph = self._graphs[batch, span] = self._captured(compute)
            finally:
                self.compiler.busy.release()
        return graph()

    def _captured(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Computing twice changes nothing: the same is written to the same places."""
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            compute()  # outside the graph, so that libraries have set themselves up
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._memory, stream=stream, capture_error_mode="thread_local"
        ):
            logits = compute()
        self._memory = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    def _compute(self, batch: int, span: int) -> Tensor:
        """The step itself, on the inputs: tokens, positions, and where to write. (B, V)"""
        model, pool = self.model, self._pool
        assert pool is not None
        ids, position, write = self._inputs.unbind()
        x = model.embedding.rows(ids[:, None])
        if isinstance(model.position, LearnedPosition):
            x = x + model.position.weight[position][:, None]
        x, angles = model.stem(x), angles_at(self._angles, position)
        view = pool.view(batch, span, position[:batch], write[:batch])
        for block in self._blocks:
            x = block(x, angles, view, 0)
        return model.logits(model.norm(x))[:batch, 0].float()

    def _use(self, blocks: list[Any]) -> None:
        self._blocks, self._proved = blocks, False
        self._forget_graphs()

    def _forget_graphs(self) -> None:
        self._graphs.clear()
        self._memory = None

    def _step_down(self, error: RuntimeError) -> None:
        """Do without what was used last."""
        if self._blocks is not self._plain:
            log.warning("decoding goes on without compiled blocks: %s", _line(error))
            self._use(self._plain)
        else:
            log.warning("decoding goes on without a CUDA graph: %s", _line(error))
            self._broken, self._pool = True, None
            self._forget_graphs()


class Compiler:
    """Has the blocks compiled by another process, and then takes them from the cache it left.

    `busy` is held while this process computes with them in the thread.
    """

    def __init__(self, model: Transformer, blocks: list[Any], rows: int) -> None:
        self.busy = threading.Lock()
        self._config, self._like = model.config, parameter_of(model)
        self._blocks, self._rows = blocks, rows
        self._made: list[Any] | None = None

    def start(self) -> None:
        """Nothing, if TRIVIUM_COMPILE is 0. Else TORCHINDUCTOR_CACHE_DIR is set, unless it is."""
        if os.environ.get("TRIVIUM_COMPILE") != "0":
            folder = str(files.cache_home() / "inductor")
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
            threading.Thread(target=self._work, name="trivium-compiler").start()

    def take(self) -> list[Any] | None:
        """The compiled blocks, once, when they are ready."""
        made, self._made = self._made, None
        return made

    def _work(self) -> None:
        try:
            if self._filled():
                with self.busy:
                    self._made = compiled(self._blocks, self._config, self._like, self._rows)
        except Exception as error:  # whatever a compiler may raise
            log.warning("decoding goes on without compiled blocks: %s", _line(error))

    def _filled(self) -> bool:
        """Run the other process; False if this program ended meanwhile."""
        spec = {
            "config": asdict(self._config),
            "dtype": str(self._like.dtype).removeprefix("torch."),
            "device": str(self._like.device),
            "rows": self._rows,
        }
        with subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for us
        ) as child:
            given: str | None = json.dumps(spec)
            while True:
                try:
                    _, said = child.communicate(given, timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    given = None
                    if not threading.main_thread().is_alive():
                        os.killpg(child.pid, signal.SIGKILL)
                        return False
        if child.returncode:
            raise RuntimeError((said.strip() or f"exit code {child.returncode}").splitlines()[-1])
        return True


def compiled(blocks: list[Any], config: TransformerConfig, like: Tensor, rows: int) -> list[Any]:
    """The blocks, compiled. One of each kind (with a window, without) is run and compared."""
    apart = torch.compiler.disable(look)  # type: ignore[no-untyped-call]
    for block in blocks:
        block.attention.look = apart
    made: list[Any] = [torch.compile(block, dynamic=False) for block in blocks]
    with torch.inference_mode():
        for i in {block.attention.attention.window: i for i, block in enumerate(blocks)}.values():
            of = blocks[i].attention.attention
            store = like.new_zeros(2, 1, of.groups, SPARE, of.head_dim)
            first = torch.zeros(rows, dtype=torch.long, device=like.device)
            seen = torch.ones(1, SPARE, dtype=torch.bool, device=like.device)
            view = View([store] * (i + 1), first[:1], first[:1], seen, None)
            angles = angles_at(angle_tables(POSITIONS[config.position](config), 1, like), first)
            x = torch.randn(rows, 1, config.width, device=like.device).to(like.dtype)
            _compare(made[i](x, angles, view, 0), blocks[i](x, angles, view, 0), like.dtype)
    return made


def fill_cache() -> None:
    """The other process: read from stdin what is wanted, compile it for weights without meaning."""
    os.nice(10)
    spec = json.load(sys.stdin)
    config = TransformerConfig(**spec["config"])
    like = torch.empty(0, dtype=getattr(torch, spec["dtype"]), device=spec["device"])
    kinds = {config.window is None or i in config.full_layers: i for i in range(config.layers)}
    with torch.device("meta"):
        empty = [BLOCKS[config.block](config, i) for i in kinds.values()]
    blocks = [block.to(like.dtype).to_empty(device=like.device) for block in empty]
    for parameter in nn.ModuleList(blocks).requires_grad_(False).parameters():
        parameter.fill_(0.01)
    compiled(fixed_blocks(blocks), config, like, spec["rows"])


def _power(n: int) -> int:
    """The least power of two that is not less."""
    return 1 << (n - 1).bit_length()


def _compare(ours: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    worst = float((ours - expected).abs().max() / expected.abs().max())
    if not worst <= TOLERANCE[dtype]:
        raise RuntimeError(f"it differs from the model by {worst:.2g} of the largest value")


def _line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:200]
