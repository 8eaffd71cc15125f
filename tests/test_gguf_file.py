"""GGUF files: written by the reference library in every type it can write, read back by ours."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.errors import NotFound, TriviumError, UsageError
from trivium.gguf_file import GGUFFile

METADATA: dict[str, Any] = {
    "test.uint": 7,
    "test.negative": -3,
    "test.float": 0.5,
    "test.flag": True,
    "test.text": "naïve 日本 🙂",
    "test.texts": ["a", "", "Ġthe"],
    "test.numbers": [1, -2, 3],
    "test.empty": "",
}
WRITABLE = [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.BF16, Type.F16, Type.F32]


def write(path: Path, tensors: dict[str, tuple[np.ndarray, Type]]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in METADATA.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            (writer.add_uint32 if value >= 0 else writer.add_int32)(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, (values, kind) in tensors.items():
        data = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((6, 64), dtype=np.float32)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "all.gguf"
    return write(path, {kind.name: (values, kind) for kind in WRITABLE})


def test_metadata(file: Path) -> None:
    read = GGUFFile(file).metadata
    assert {key: read[key] for key in METADATA if key in read} == {
        key: value for key, value in METADATA.items() if value != "" or key in read
    }
    assert read["general.architecture"] == "llama"


@pytest.mark.parametrize("kind", WRITABLE, ids=lambda kind: kind.name)
def test_tensors(file: Path, values: np.ndarray, kind: Type) -> None:
    read = GGUFFile(file)
    assert read.tensors[kind.name].shape == values.shape
    assert read.tensors[kind.name].type_name == kind.name
    reference = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    np.testing.assert_array_equal(read.read(kind.name), reference.reshape(values.shape))


def test_same_tensors_as_the_reference_reader(file: Path) -> None:
    ours, theirs = GGUFFile(file), gguf.GGUFReader(file)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.offset == tensor.data_offset and info.nbytes == tensor.n_bytes
        np.testing.assert_array_equal(ours.raw(tensor.name), tensor.data.view(np.uint8).reshape(-1))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a GGUF|empty"),
        (b"GG", "not a GGUF"),
        (b"PK\x03\x04 a zip file", "not a GGUF"),
        (b"GGUF", "broken or truncated"),
        (b"GGUF\x09\0\0\0" + b"\0" * 16, "version 9"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 16, "broken or truncated"),
        (b"GGUF\x03\0\0\0" + b"\0" * 8 + b"\x01" + b"\0" * 7 + b"\xff" * 64, "broken or truncated"),
    ],
)
def test_not_a_gguf_file(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        GGUFFile(path)


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound):
        GGUFFile(tmp_path / name)


def test_every_truncation_is_noticed(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    path = tmp_path / "cut.gguf"
    for size in range(4, len(data) - 64, 97):
        path.write_bytes(data[:size])
        with pytest.raises(UsageError):
            GGUFFile(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_headers_raise_only_our_errors(file: Path, data: st.DataObject) -> None:
    """Whatever bytes of the header change, reading ends, quickly, with a result or one clear
    line."""
    damaged = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, 900))] = data.draw(st.integers(0, 255))
    path = file.with_name("damaged.gguf")
    path.write_bytes(damaged)
    try:
        read = GGUFFile(path)
        for name in read.tensors:
            read.read(name)
    except (TriviumError, NotFound):
        pass
