"""GGUF files, memory-mapped: metadata and tensors by name.

Layout (GGUF v2/v3, little endian): magic, version, number of tensors, number of metadata pairs; the
pairs; the tensors' names, shapes, types and offsets; padding; the tensors. The header is parsed
here, in one pass and with every length checked against the file, because the reference reader takes
seconds for a tokenizer's arrays; the arithmetic of the quantisation types is the reference
library's (`gguf.quants`).
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.errors import NotFound, UsageError

if TYPE_CHECKING:
    import numpy as np

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
LENGTH = struct.Struct("<Q")
MAX_DIMENSIONS = 4
MAX_NESTING = 4


@dataclass(frozen=True)
class TensorInfo:
    """`shape` is in PyTorch's order (rows first); `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    type_name: str
    offset: int
    nbytes: int


class GGUFFile:
    """`metadata` maps keys to Python values, `tensors` maps names to `TensorInfo`.

    Raises NotFound for a missing file and UsageError for anything that is not a whole GGUF file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise NotFound(f"no such GGUF file: {self.path}")
        with self.path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise UsageError(f"{self.path} is not a GGUF file (its first bytes are not 'GGUF')")
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            self._parse(_Cursor(self._data))
        except (struct.error, _Malformed, UnicodeDecodeError) as error:
            reason = "its header ends too early" if isinstance(error, struct.error) else error
            raise UsageError(
                f"{self.path} is a broken or truncated GGUF file ({reason}); download it again"
            ) from None

    def _parse(self, cursor: "_Cursor") -> None:
        cursor.position = 4
        (version,) = cursor.unpack("<I")
        if version not in (2, 3):
            raise UsageError(f"{self.path} is GGUF version {version}; versions 2 and 3 can be read")
        tensor_count, pair_count = cursor.unpack("<QQ")
        for _ in range(pair_count):
            key = cursor.string()
            (kind,) = cursor.unpack("<I")
            self.metadata[key] = cursor.value(kind)
        headers = [_tensor_header(cursor) for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise _Malformed(f"alignment {alignment!r}")
        start = -(-cursor.position // alignment) * alignment
        for name, dimensions, kind, offset in headers:
            self.tensors[name] = self._tensor_info(name, dimensions, kind, start + offset)

    def _tensor_info(
        self, name: str, dimensions: tuple[int, ...], kind: int, offset: int
    ) -> TensorInfo:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            quantization = GGMLQuantizationType(kind)
        except ValueError:
            raise UsageError(f"{self.path}: tensor {name} has unknown type {kind}") from None
        block, block_bytes = GGML_QUANT_SIZES[quantization]
        count = 1
        for dimension in dimensions:
            count *= dimension
        if count == 0:
            raise _Malformed(f"tensor {name} is empty")
        if count % block or (dimensions and dimensions[0] % block):
            raise _Malformed(f"tensor {name} of shape {dimensions} does not fill blocks of {block}")
        nbytes = count // block * block_bytes
        if offset + nbytes > len(self._data):
            raise _Malformed(f"tensor {name} ends behind the end of the file")
        return TensorInfo(name, dimensions[::-1], kind, quantization.name, offset, nbytes)

    def raw(self, name: str) -> "np.ndarray":
        """The stored bytes of a tensor as uint8, a view of the mapped file (of a private mapping:
        writing changes no file)."""
        import numpy as np

        info = self.tensors[name]
        return np.frombuffer(self._data, np.uint8, count=info.nbytes, offset=info.offset)

    def release(self) -> None:
        """Give the memory of what was read back to the system; it can be read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._data.madvise(mmap.MADV_DONTNEED)

    def read(self, name: str) -> "np.ndarray":
        """The tensor in float32 (float16 and bfloat16 are widened), with its PyTorch shape."""
        import numpy as np
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        info = self.tensors[name]
        if info.type_name == "F32":
            return self.raw(name).view(np.float32).reshape(info.shape)
        if info.type_name == "F16":
            return self.raw(name).view(np.float16).reshape(info.shape).astype(np.float32)
        rows = self.raw(name).reshape(*info.shape[:-1], -1)
        try:
            with np.errstate(all="ignore"):  # a damaged file may hold any bits as scales
                values = dequantize(rows, GGMLQuantizationType(info.type))
        except NotImplementedError:
            raise UsageError(
                f"{self.path}: tensor {name} is of type {info.type_name}, which the gguf package "
                "cannot read"
            ) from None
        return np.asarray(values, dtype=np.float32).reshape(info.shape)


class _Malformed(Exception):
    pass


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0

    def unpack(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self.data, self.position)
        self.position += struct.calcsize(form)
        return values

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise _Malformed(f"a value of {count} bytes ends behind the end of the file")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def string(self) -> str:
        (length,) = self.unpack("<Q")
        return self.take(length).decode("utf-8")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.string()
        if kind in SCALARS:
            return self.unpack("<" + SCALARS[kind])[0]
        if kind != ARRAY or depth > MAX_NESTING:
            raise _Malformed(f"unknown metadata type {kind}")
        element, count = self.unpack("<IQ")
        if element in SCALARS:
            form = SCALARS[element]
            return list(struct.unpack(f"<{count}{form}", self.take(count * struct.calcsize(form))))
        if count > len(self.data):
            raise _Malformed(f"an array of {count} elements is larger than the file")
        if element == STRING:
            return self.strings(count)
        return [self.value(element, depth + 1) for _ in range(count)]

    def strings(self, count: int) -> list[str]:
        """A vocabulary has 100,000 of them: one loop without calls."""
        data, position, size = self.data, self.position, len(self.data)
        length_at, texts = LENGTH.unpack_from, []
        for _ in range(count):
            start = position + 8
            position = start + length_at(data, position)[0]
            if position > size:
                raise _Malformed("a text ends behind the end of the file")
            texts.append(data[start:position].decode())
        self.position = position
        return texts


def _tensor_header(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string()
    (rank,) = cursor.unpack("<I")
    if rank > MAX_DIMENSIONS:
        raise _Malformed(f"tensor {name} has {rank} dimensions")
    dimensions = cursor.unpack(f"<{rank}Q")
    kind, offset = cursor.unpack("<IQ")
    return name, dimensions, kind, offset
