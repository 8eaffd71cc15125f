"""Packed weights and native kernels against the same arithmetic written out in PyTorch."""

import ctypes
import multiprocessing
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trivium.nn import native
from trivium.nn.packed import FEW_ROWS, TYPES, PackedLinear, pack, stack

KINDS = list(TYPES)


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


@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS])
@pytest.mark.parametrize("shape", [(5, 32), (64, 96), (200, 576)])
@pytest.mark.parametrize("kind", KINDS)
def test_few_rows(kernels: object, kind: str, shape: tuple[int, int], rows: int) -> None:
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
    x = torch.randn(FEW_ROWS, 192)
    together = linear(x)
    for i in range(FEW_ROWS):
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
def test_many_rows_and_rows_of_the_matrix(kind: str) -> None:
    blocks = pack(torch.randn(48, 64), kind)
    linear = PackedLinear(blocks, kind)
    exact = widened(blocks, kind)
    assert torch.equal(linear.widened(), exact.to(torch.bfloat16))
    x = torch.randn(2, FEW_ROWS, 64)
    error = (linear(x) - x @ exact.T).abs().max() / (x @ exact.T).abs().max()
    assert error < 0.02 and linear(x).dtype == torch.float32
    index = torch.tensor([[3, 0], [47, 3]])
    assert torch.equal(linear.rows(index), exact[index].to(torch.bfloat16))


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_kernels(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    linear = PackedLinear(pack(torch.randn(48, 64), kind), kind)
    x = torch.randn(3, 64)
    expected = linear(x)
    monkeypatch.setattr(native, "library", lambda: None)
    assert torch.equal(linear.widened(), widened(linear.blocks, kind).to(torch.bfloat16))
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


@pytest.mark.parametrize("kind", KINDS)
def test_plain_c_gives_the_same(
    kernels: object, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code for processors without the vector instructions that the other uses."""
    plain = tuple(flag for flag in native.FLAGS if flag != "-march=native")
    monkeypatch.setattr(native, "FLAGS", plain)
    path = native._compiled()
    assert path is not None
    linear = PackedLinear(pack(torch.randn(40, 96), kind), kind, torch.randn(40))
    x = torch.randn(5, 96)
    expected = linear(x)
    ours = linear._few(ctypes.CDLL(str(path)), x)
    assert (ours - expected).abs().max() / expected.abs().max() < 1e-5
