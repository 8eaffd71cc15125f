"""The step over fixed shapes against the ordinary path of the model, on a CPU.

Everything but the capture itself runs here as on a GPU: seats, batches, spans, the other process
that compiles, and the swap.
"""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.language import compiled_step
from trivium.language.compiled_step import CompiledStep
from trivium.language.fixed_step import Pool
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.nn.attention import KVCache

BASE = TransformerConfig(vocab_size=96, context=2048, width=64, layers=3, heads=4, hidden=96)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"groups": 2},
    "gpt2": {
        "norm": "layer",
        "mlp": "gelu_tanh",
        "position": "learned",
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
    },
    "gemma": {
        "groups": 1,
        "head_dim": 32,
        "norm_eps": 1e-6,
        "block": "sandwich",
        "stem": "scaled",
        "mlp": "geglu",
        "position": "windowed_rotary",
        "window": 24,
        "full_layers": (2,),
        "qk_norm": True,
        "query_scale": 0.2,
    },
    "qwen2": {"groups": 2, "qkv_bias": True, "tied": False},
    "qwen3": {"groups": 2, "qk_norm": True, "head_dim": 32},
    "mistral": {"groups": 2, "window": 24},
}


def made(family: str = "llama", **changes: Any) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(replace(BASE, **{**FAMILIES[family], **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def filled(model: Transformer, length: int, seed: int = 0) -> tuple[KVCache, list[int]]:
    """A cache of some random tokens, and the tokens."""
    ids = torch.randint(96, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    cache = KVCache()
    with torch.inference_mode():
        model.features(torch.tensor([ids]), cache)
    return cache, ids


@torch.inference_mode()
def reference(model: Transformer, ids: list[int]) -> Tensor:
    return model(torch.tensor([ids]))[0, -1]


def close(ours: Tensor, expected: Tensor) -> None:
    assert ours.dtype == torch.float32
    assert (ours - expected).abs().max() / expected.abs().max() < 1e-5


@pytest.fixture
def model() -> Transformer:
    return made()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_batch_of_different_lengths(family: str) -> None:
    """Also across the borders of spans: 512 positions, and 1024."""
    model = made(family)
    step = CompiledStep(model)
    pairs = [filled(model, length, length) for length in (1, 20, 30, 509, 1022)]
    for turn in range(5):
        tokens = [turn + i for i in range(len(pairs))]
        logits = step(tokens, [cache for cache, _ in pairs])
        for token, (cache, ids), row in zip(tokens, pairs, logits, strict=True):
            ids.append(token)
            assert cache.length == len(ids)
            close(row, reference(model, ids))


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_alone_or_in_a_batch_the_same_bits(family: str) -> None:
    model = made(family)
    lengths = (1, 5, 40, 300, 600)
    together = [filled(model, n, n)[0] for n in lengths]
    alone = [filled(model, n, n)[0] for n in lengths]
    batched, single = CompiledStep(model), CompiledStep(model)
    for token in (3, 4, 5):
        tokens = [token + i for i in range(len(lengths))]
        logits = batched(tokens, together)
        for i, cache in enumerate(alone):
            assert torch.equal(single([tokens[i]], [cache])[0], logits[i])


def test_truncate_copy_and_prefill_go_on(model: Transformer) -> None:
    step = CompiledStep(model)
    cache, ids = filled(model, 500)
    for token in range(8):
        step([token], [cache])
    cache.truncate(300)
    ids = ids[:300]
    twin, other = cache.copy(200), ids[:200]
    close(step([7], [cache])[0], reference(model, ids := [*ids, 7]))
    more = list(range(90)) * 4  # beyond the seat: the cache grows a store of its own
    with torch.inference_mode():
        model.features(torch.tensor([more]), cache)
    ids += more
    for token in (1, 2):
        close(step([token], [cache])[0], reference(model, ids := [*ids, token]))
        logits = step([token, token], [twin, filled(model, 3)[0]])
        close(logits[0], reference(model, other := [*other, token]))


def test_who_is_in_the_way_moves_out(model: Transformer) -> None:
    """More conversations than seats, each continued in turn; batches that grow and shrink."""
    step = CompiledStep(model)
    pairs = [filled(model, 10 + i, i) for i in range(7)]
    for chosen in ([0], [1], [0, 1, 2], [4], [5, 3], [6, 5, 4, 3, 2, 1, 0], [3], [2, 6], [0]):
        logits = step([9 + i for i in chosen], [pairs[i][0] for i in chosen])
        for i, row in zip(chosen, logits, strict=True):
            pairs[i][1].append(9 + i)
            close(row, reference(model, pairs[i][1]))


def test_more_sequences_than_rows(model: Transformer) -> None:
    step = CompiledStep(model, rows=4)
    pairs = [filled(model, 3 + i, i) for i in range(10)]
    logits = step([5] * 10, [cache for cache, _ in pairs])
    for (_, ids), row in zip(pairs, logits, strict=True):
        close(row, reference(model, [*ids, 5]))


def test_an_empty_cache_and_the_last_position(model: Transformer) -> None:
    step = CompiledStep(model)
    first, last = KVCache(), filled(model, BASE.context - 1)
    logits = step([5, 6], [first, last[0]])
    close(logits[0], reference(model, [5]))
    close(logits[1], reference(model, [*last[1], 6]))
    assert (first.length, last[0].length) == (1, BASE.context)


def test_seats_of_the_gone_are_free(model: Transformer) -> None:
    pool = Pool(model, 2, 512)
    first, second = filled(model, 4)[0], filled(model, 4)[0]
    assert pool.seat([first, second], 2) == [0, 1]
    assert pool.seat([second, first], 2) == [1, 0], "nobody moves without need"
    del first
    assert pool.owner(0) is None
    assert pool.seat([filled(model, 4)[0]], 2) == [0]


def test_bfloat16_keeps_to_the_tolerance() -> None:
    model = made().to(torch.bfloat16)
    cache, ids = filled(model, 40)
    expected = reference(model, [*ids, 3]).float()
    ours = CompiledStep(model)([3], [cache])[0]
    assert (ours - expected).abs().max() / expected.abs().max() < 0.05


def test_a_cpu_has_the_ordinary_path(model: Transformer) -> None:
    assert CompiledStep.of(model) is None


# -- what fails ---------------------------------------------------------------------------------


def assert_goes_on(step: CompiledStep, cache: KVCache, ids: list[int]) -> None:
    for token in (1, 2, 3):
        logits = step([token], [cache])
        ids.append(token)
        close(logits[0], reference(step.model, ids))
        assert cache.length == len(ids)


def test_a_failed_capture_is_one_line(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> Tensor:
        raise RuntimeError("CUDA error: operation not permitted\nand more lines")

    monkeypatch.setattr(CompiledStep, "_run", failing)
    assert_goes_on(CompiledStep(model), *filled(model, 12))
    assert [record.getMessage() for record in caplog.records] == [
        "decoding goes on without a CUDA graph: CUDA error: operation not permitted"
    ]


@pytest.mark.parametrize("wrong", [lambda x: x * 1.01, lambda x: x * float("nan")])
def test_wrong_numbers_are_noticed(
    model: Transformer,
    wrong: Callable[[Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    compute = CompiledStep._compute
    monkeypatch.setattr(CompiledStep, "_compute", lambda *given: wrong(compute(*given)))
    assert_goes_on(CompiledStep(model), *filled(model, 12))
    assert len(caplog.records) == 1 and "differs from the model" in caplog.text


# -- the compiler -------------------------------------------------------------------------------


def until_swapped(step: CompiledStep, cache: KVCache, ids: list[int]) -> int:
    """Go on until the compiler's thread has ended; how many steps that took."""
    steps, end = 0, time.monotonic() + 240
    while not steps or any(t.name == "trivium-compiler" for t in threading.enumerate()):
        assert time.monotonic() < end
        step([steps % 96], [cache])
        ids.append(steps % 96)
        steps += 1
        if len(ids) > 400:
            cache.truncate(100)
            del ids[100:]
    return steps


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_step.Compiler, "_filled", lambda self: True)


def fake(blocks: list[Any], *_: Any) -> list[Any]:
    return [lambda *given, b=block: b(*given) for block in blocks]


def test_the_step_is_swapped_on_the_way(
    model: Transformer, same_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_step, "compiled", fake)
    step = CompiledStep(model, patience=3)
    cache, ids = filled(model, 12)
    plain = step._blocks
    until_swapped(step, cache, ids)
    assert step._blocks is plain, "not before the third step"
    for _ in range(2):
        step([1], [cache])
        ids.append(1)
    until_swapped(step, cache, ids)
    step([1], [cache])
    ids.append(1)
    assert step._blocks is not plain
    assert_goes_on(step, cache, ids)


def test_compiled_blocks_that_fail_are_left_out(
    model: Transformer,
    same_process: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def failing(*_: object) -> Tensor:
        raise RuntimeError("kernel not found")

    monkeypatch.setattr(compiled_step, "compiled", lambda blocks, *_: [failing] * len(blocks))
    step = CompiledStep(model, patience=1)
    cache, ids = filled(model, 12)
    until_swapped(step, cache, ids)
    assert_goes_on(step, cache, ids)
    assert [record.getMessage() for record in caplog.records] == [
        "decoding goes on without compiled blocks: kernel not found"
    ]
    assert not step._broken


@pytest.mark.parametrize(
    ("child", "said"),
    [
        ("raise RuntimeError('no C++ compiler')", "RuntimeError: no C++ compiler"),
        ("import os; os.abort()", "exit code -6"),
        ("import sys; sys.exit('x' * 500)", "x" * 200),
    ],
)
def test_a_compiler_that_fails_is_one_line(
    model: Transformer,
    child: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(compiled_step, "CHILD", child)
    step = CompiledStep(model, patience=1)
    cache, ids = filled(model, 12)
    until_swapped(step, cache, ids)
    assert_goes_on(step, cache, ids)
    assert [record.getMessage() for record in caplog.records] == [
        f"decoding goes on without compiled blocks: {said}"
    ]


def test_it_can_be_switched_off(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVIUM_COMPILE", "0")
    monkeypatch.setattr(compiled_step.Compiler, "_work", None)
    assert_goes_on(CompiledStep(model, patience=1), *filled(model, 12))


LEAVES = """
import json, sys, time
from trivium.language import compiled_step
from trivium.language.transformer import Transformer, TransformerConfig
compiled_step.CHILD = "import time; print('started', flush=True); time.sleep(60)"
model = Transformer(TransformerConfig(vocab_size=8, context=8, width=8, layers=1, heads=1))
compiled_step.CompiledStep(model).compiler.start()
time.sleep(0.5)
{}
"""


@pytest.mark.parametrize(("last", "code"), [("", 0), ("raise KeyboardInterrupt", -2)])
def test_leaving_does_not_wait_for_the_compiler(last: str, code: int) -> None:
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", LEAVES.format(last)], capture_output=True, text=True, timeout=50
    )
    assert run.returncode == code and time.monotonic() - start < 40
    assert "compiled" not in run.stderr.replace("compiled_step", "")


@pytest.mark.filterwarnings("ignore")  # torch warns, and takes an error for a miss of its cache
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the step is for GPUs; a minute on a CPU")
def test_the_real_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process compiles while we go on; its cache is used, and nothing is compiled again
    when the step is swapped."""
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    model = made("gemma")
    step = CompiledStep(model, patience=1)
    cache, ids = filled(model, 12)
    counters.clear()
    with caplog.at_level(logging.WARNING, logger="trivium"):
        while_compiling = until_swapped(step, cache, ids)
    said = [r.getMessage() for r in caplog.records if r.name.startswith("trivium")]
    if "compiler" in str(said).lower():
        pytest.skip("no C++ compiler here")
    assert not said
    assert while_compiling > 3
    assert counters["inductor"]["fxgraph_cache_miss"] == 0
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    assert_goes_on(step, cache, ids)
    others = [filled(model, n)[0] for n in (3, 600)]
    step([1, 2], others)
    assert counters["stats"]["unique_graphs"] == graphs
    assert step._blocks is not step._plain


def test_the_description_of_a_model_travels_whole() -> None:
    config = replace(BASE, rope_scaling={"rope_type": "linear", "factor": 2.0}, full_layers=(1,))
    again = TransformerConfig(**json.loads(json.dumps(asdict(config))))
    assert replace(again, full_layers=tuple(again.full_layers)) == config
