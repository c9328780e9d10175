"""Reads the header of a GGUF file, and the bytes of its tensors.

Numbers are little-endian. The header contains metadata and each tensor's name, shape, number format and offset.
"""

import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference_server.weights.gguf.formats import TensorFormat, format_of
from tailrace_shared.config_errors import ConfigurationError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
# struct's format characters by GGUF's number for the type of a metadata value.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


_MAX_DIMENSIONS = 4  # the format's own limit


class _Damaged(ValueError):
    """The file does not have the structure of a GGUF file."""


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor's description in the header of its file.

    Attributes:
        name: Its name in the file, for example "blk.0.attn_q.weight".
        shape: Its shape, the outermost dimension first.
        type_id: GGML's number for its format.
        offset: Offset of its first byte from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int

    @property
    def format(self) -> TensorFormat:
        """Return the number format.

        Raises:
            ConfigurationError: This server does not support the format.
        """
        return format_of(self.type_id)

    @property
    def num_rows(self) -> int:
        """Return the number of rows: the product of all dimensions but the innermost."""
        return math.prod(self.shape[:-1])

    @property
    def num_weights(self) -> int:
        """Return the number of the tensor's elements."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Return the size of a row in bytes."""
        return self.format.row_bytes(self.shape[-1])


class GgufFile:
    """A GGUF file whose header has been read.

    Attributes:
        path: The file.
        metadata: Values by key. Bytes of strings that are not UTF-8 are replaced with U+FFFD.
        tensors: Tensors by name, in the file's order.
    """

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            ConfigurationError: The file cannot be read, is truncated, is not a GGUF file, or is one part of several. It
                is also raised for big-endian files, and for unsupported GGUF versions and number formats.
        """
        self.path = path
        self.metadata: dict[str, Any]
        self.tensors: dict[str, FileTensor]
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < 24 or file.read(4) != _MAGIC:
                    raise _Damaged("it does not begin with GGUF" if size >= 24 else f"it has {size} bytes")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    self.metadata, self.tensors = _header(content, size)
        except (_Damaged, struct.error, OverflowError, MemoryError) as damage:
            raise ConfigurationError(
                f"cannot load {path.name}: the file is truncated or is not a GGUF file ({damage}): download it again"
            ) from None
        except ConfigurationError as refusal:
            raise ConfigurationError(f"cannot load {path.name}: {refusal}") from None
        except (TypeError, ValueError, RecursionError):  # values of wrong types, or arrays nested too deeply
            raise ConfigurationError(f"cannot load {path.name}: its header is damaged: download it again") from None
        except OSError as error:
            raise ConfigurationError(f"cannot load {path}: {error.strerror}") from None

    @property
    def architecture(self) -> str:
        """Return the architecture by llama.cpp's name, for example "llama"."""
        return str(self.metadata.get("general.architecture", ""))


def _header(content: mmap.mmap, size: int) -> tuple[dict[str, Any], dict[str, FileTensor]]:
    """Return the metadata and the tensors of a file of `size` bytes."""
    (version,) = struct.unpack_from("<I", content, 4)
    if version not in _VERSIONS:
        if struct.unpack_from(">I", content, 4)[0] in _VERSIONS:
            raise ConfigurationError("it is a big-endian GGUF file: use the little-endian one")
        raise ConfigurationError(f"its GGUF version is {version}: this server reads the versions 2 and 3")
    reader = _Reader(content, 8)
    num_tensors, num_values = reader.number("Q"), reader.number("Q")
    metadata = {}
    for _ in range(num_values):
        key = reader.string()
        metadata[key] = reader.value(reader.number("I"))
    parts = metadata.get("split.count", 1)
    if parts > 1:
        raise ConfigurationError(
            f"it is one of {parts} parts of a model: join them with llama.cpp's llama-gguf-split --merge"
        )
    found = [(reader.string(), *reader.place()) for _ in range(num_tensors)]
    alignment = int(metadata.get("general.alignment", _DEFAULT_ALIGNMENT)) or 1
    start = -(-reader.offset // alignment) * alignment
    tensors = {name: FileTensor(name, shape, type_id, start + offset) for name, shape, type_id, offset in found}
    if not tensors:
        raise _Damaged("it contains no tensors")
    _check(tensors, size)
    return metadata, tensors


def _check(tensors: dict[str, FileTensor], size: int) -> None:
    """Check that every tensor has a supported format and whole blocks, and that the file contains all of its bytes."""
    for name, tensor in tensors.items():
        if not tensor.shape or tensor.shape[-1] % tensor.format.block_weights:
            raise _Damaged(f"the tensor {name} has the shape {tensor.shape} in {tensor.format.name}")
        end = tensor.offset + tensor.num_rows * tensor.row_bytes
        if end > size:
            raise _Damaged(f"it has {size:,} bytes, and its tensors need {end:,} or more")


class _Reader:
    """Reads consecutive values of the header."""

    def __init__(self, content: mmap.mmap, offset: int) -> None:
        self._content, self.offset = content, offset

    def number(self, kind: str) -> Any:
        """Return the next number. `kind` is struct's format character for its type."""
        (number,) = struct.unpack_from("<" + kind, self._content, self.offset)
        self.offset += struct.calcsize("<" + kind)
        return number

    def string(self) -> str:
        """Return the next string. Bytes that are not UTF-8 become replacement characters."""
        length = self.number("Q")
        if self.offset + length > len(self._content):
            raise _Damaged("a string is longer than the file")
        self.offset += length
        return self._content[self.offset - length : self.offset].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """Return a metadata value of GGUF's type `kind`."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            element, count = self.number("I"), self.number("Q")
            if count > len(self._content):
                raise _Damaged("an array is longer than the file")
            if element in _SCALARS:
                values = struct.unpack_from(f"<{count}{_SCALARS[element]}", self._content, self.offset)
                self.offset += struct.calcsize(f"<{count}{_SCALARS[element]}")
                return list(values)
            return [self.value(element) for _ in range(count)]
        if kind not in _SCALARS:
            raise _Damaged(f"a value has the unknown type {kind}")
        return self.number(_SCALARS[kind])

    def place(self) -> tuple[tuple[int, ...], int, int]:
        """Return a tensor's shape (outermost dimension first), its format's number, and its offset after the header."""
        dimensions = self.number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise _Damaged(f"a tensor has {dimensions} dimensions")
        shape = [self.number("Q") for _ in range(dimensions)]
        return tuple(reversed(shape)), self.number("I"), self.number("Q")


def read_rows(path: Path, tensor: FileTensor, first: int, count: int, memory: Tensor | None = None) -> Tensor:
    """Return the bytes of consecutive rows, (count, row_bytes) uint8.

    The bytes are copied, because a mapped file would count as memory of the process. If another process truncated a
    mapped file, this process would also crash.

    Args:
        path: The file.
        tensor: The tensor that contains the rows.
        first: Index of the first row.
        count: Number of rows.
        memory: (count * row_bytes,) uint8 for the result, or None for new memory.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file became shorter after its header was read.
    """
    memory = torch.empty(count * tensor.row_bytes, dtype=torch.uint8) if memory is None else memory
    rows = memory.view(count, tensor.row_bytes)
    array: Any = rows.view(-1).numpy()
    content = memoryview(array)
    with path.open("rb", buffering=0) as file:
        file.seek(tensor.offset + first * tensor.row_bytes)
        while content:
            done = file.readinto(content)
            if not done:
                raise ValueError(f"{path.name} became shorter while it was read")
            content = content[done:]
    return rows
