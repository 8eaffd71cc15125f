"""Packed weights and native kernels against the same arithmetic written out in PyTorch."""

import ctypes
import functools
import multiprocessing
import platform
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trivium.nn import native
from trivium.nn.packed import TYPES, PackedLinear, pack, stack

KINDS = list(TYPES)
ROWS = 15  # more than one tile of rows, and a rest


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def kernels() -> object:
    library = native.library()
    if library is None:
        pytest.skip("no C compiler here")
    return library


def widened(blocks: Tensor, kind: str) -> Tensor:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType[kind]))


def rounded(x: Tensor) -> Tensor:
    """x with every block of 32 rounded to 8 bits, as the kernels see it."""
    blocks = x.unflatten(-1, (-1, 32))
    step = blocks.abs().amax(-1, keepdim=True) / 127
    codes = torch.where(step > 0, (blocks / step.clamp_min(1e-30)).round(), 0.0)
    return (codes * step).flatten(-2)


@pytest.mark.parametrize("rows", [1, 2, ROWS, 300])
@pytest.mark.parametrize("shape", [(5, 32), (64, 96), (200, 576)])
@pytest.mark.parametrize("kind", KINDS)
def test_products(kernels: object, kind: str, shape: tuple[int, int], rows: int) -> None:
    blocks = pack(torch.randn(shape), kind)
    bias = torch.randn(shape[0])
    x = torch.randn(rows, shape[1])
    expected = rounded(x).double() @ widened(blocks, kind).double().T + bias
    ours = PackedLinear(blocks, kind, bias)(x)
    error = (ours - expected).abs().max() / expected.abs().max()
    assert error < 1e-5, "exact but for the order of summation"


@pytest.mark.parametrize("kind", KINDS)
def test_alone_or_in_a_batch_the_same_bits(kernels: object, kind: str) -> None:
    linear = PackedLinear(pack(torch.randn(300, 192), kind), kind)
    x = torch.randn(ROWS, 192)
    together = linear(x)
    for i in range(ROWS):
        assert torch.equal(linear(x[i : i + 1])[0], together[i])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(kernels: object, threads: int) -> None:
    linear = PackedLinear(pack(torch.randn(3000, 64)), "Q8_0")
    x = torch.randn(1, 64)
    expected = linear(x)
    library = native.library()
    assert library is not None
    library.trivium_threads(threads)
    try:
        for _ in range(50):
            assert torch.equal(linear(x), expected)
    finally:
        library.trivium_threads(1)


def test_several_threads_of_the_program_at_once(kernels: object) -> None:
    linear = PackedLinear(pack(torch.randn(3000, 64)), "Q8_0")
    x = torch.randn(1, 64)
    expected = linear(x)
    library = native.library()
    assert library is not None
    library.trivium_threads(2)
    wrong: list[int] = []

    def work() -> None:
        for i in range(100):
            if not torch.equal(linear(x), expected):
                wrong.append(i)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    library.trivium_threads(1)
    assert not wrong


def _in_a_child(expected: Tensor, linear: PackedLinear, x: Tensor, answer: object) -> None:
    answer.put(bool(torch.equal(linear(x), expected)))  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_go_on(kernels: object) -> None:
    linear = PackedLinear(pack(torch.randn(3000, 64)), "Q8_0")
    x = torch.randn(1, 64)
    library = native.library()
    assert library is not None
    library.trivium_threads(2)
    expected = linear(x)
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    child = context.Process(target=_in_a_child, args=(expected, linear, x, answer))
    child.start()
    assert answer.get(timeout=30)
    child.join()
    library.trivium_threads(1)


@pytest.mark.parametrize("kind", KINDS)
def test_panels_hold_the_blocks_of_the_file(kernels: object, kind: str) -> None:
    blocks = pack(torch.randn(43, 96), kind)
    linear = PackedLinear(blocks, kind)
    assert torch.equal(linear.blocks(), blocks)
    assert torch.equal(linear.widened(), widened(blocks, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_matrix(kind: str) -> None:
    blocks = pack(torch.randn(48, 64), kind)
    index = torch.tensor([[3, 0], [47, 3]])
    expected = widened(blocks, kind)[index].to(torch.bfloat16)
    assert torch.equal(PackedLinear(blocks, kind).rows(index), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_kernels(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    blocks, x, index = pack(torch.randn(50, 64), kind), torch.randn(3, 64), torch.tensor([49, 0])
    made_before = PackedLinear(blocks, kind)
    expected, rows = made_before(x), made_before.rows(index)
    monkeypatch.setattr(native, "library", lambda: None)
    for linear in (made_before, PackedLinear(blocks, kind)):
        assert torch.equal(linear.widened(), widened(blocks, kind))
        assert torch.equal(linear.rows(index), rows)
        assert (linear(x) - expected).abs().max() / expected.abs().max() < 0.02


def test_stacked_rows() -> None:
    a, b = torch.randn(8, 64), torch.randn(4, 64)
    blocks, kind = stack([(pack(a, "Q4_1"), "Q4_1"), (pack(b, "Q4_1"), "Q4_1")])
    assert kind == "Q4_1" and torch.equal(blocks, torch.cat([pack(a, kind), pack(b, kind)]))
    blocks, kind = stack([(pack(a, "Q4_1"), "Q4_1"), (pack(b, "Q8_0"), "Q8_0")])
    assert kind == "Q8_0"
    torch.testing.assert_close(
        widened(blocks, kind)[:8], widened(pack(a, "Q4_1"), "Q4_1"), rtol=0, atol=0.02
    )


def test_no_compiler_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native._compiled() is None
    monkeypatch.undo()
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(native, "FLAGS", ("-no-such-flag-exists",))
    assert native._compiled() is None


def test_the_kernels_leave_the_arithmetic_of_the_process_alone(kernels: object) -> None:
    """No flushing of subnormal numbers to zero, which -ffast-math would switch on."""
    assert 5e-324 * 1.0 == 5e-324


PROCESSORS = {"plain C": (), "AVX2": ("-mavx2", "-mfma", "-mf16c")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_other_processors_give_the_same(
    kernels: object, kind: str, processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code for processors without the vector instructions that this one may have."""
    if platform.machine() != "x86_64" and processor == "AVX2":
        pytest.skip("AVX2 is of x86-64")
    blocks, bias, x = pack(torch.randn(43, 96), kind), torch.randn(43), torch.randn(9, 96)
    expected = PackedLinear(blocks, kind, bias)(x)
    other = library_for(processor)
    monkeypatch.setattr(native, "library", lambda: other)
    linear = PackedLinear(blocks, kind, bias)
    assert torch.equal(linear.blocks(), blocks)
    assert (linear(x) - expected).abs().max() / expected.abs().max() < 1e-5
    index = torch.tensor([42, 7])
    assert torch.equal(linear.rows(index), widened(blocks, kind)[index].to(torch.bfloat16))


@functools.cache
def library_for(processor: str) -> ctypes.CDLL:
    flags = tuple(flag for flag in native.FLAGS if flag != "-march=native")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "FLAGS", (*flags, *PROCESSORS[processor]))
        path = native._compiled()
    assert path is not None
    return native._opened(path)
