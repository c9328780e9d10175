"""Reads the header of a GGUF file: its metadata without arrays, and the shapes and types of its tensors.

At each start, the server reads the header of every GGUF file before it loads weights. Because this module skips arrays,
such as the list of tokens, it takes a third of the time of gguf/file.py.
"""

import struct
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any

from tailrace_shared.config_errors import ConfigurationError

_MAGIC = b"GGUF"
# struct's format characters by GGUF's number for the type of a metadata value. 8 is a string and 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32  # alignment of the first tensor in bytes, unless the metadata sets another one
_LONGEST_STRING = 1 << 26  # a chat template is far shorter; a larger number means a damaged file


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of the file.

    Attributes:
        name: Its name.
        shape: Its dimensions, the innermost first.
        type_number: GGUF's number for its format.
        offset: Its offset after the header and its padding, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int

    @property
    def num_weights(self) -> int:
        """Return the number of the tensor's elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The header of a file.

    Attributes:
        metadata: Values by key. An array's value is its length.
        tensors: The tensors in the order of the file.
        data_bytes: Size of the file after the header and its padding, in bytes.
    """

    metadata: dict[str, Any]
    tensors: list[GgufTensor]
    data_bytes: int

    def number(self, key: str) -> int | None:
        """Return the metadata's integer below the architecture's prefix, for example for the key "block_count".

        Returns None if the metadata lacks it or it is not an integer.
        """
        value = self.metadata.get(f"{self.metadata.get('general.architecture')}.{key}")
        return value if isinstance(value, int) else None


def read_header(path: Path) -> GgufHeader:
    """Return the header of a GGUF file.

    Raises:
        ConfigurationError: The file cannot be read, is truncated within its header, or is not a GGUF file.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise ConfigurationError(f"{path.name} is not a GGUF file")
            _, num_tensors, num_keys = _unpack(file, "<IQQ")
            metadata = {}
            for _ in range(num_keys):
                key = _string(file)
                (kind,) = _unpack(file, "<I")
                metadata[key] = _value(file, kind)
            tensors = [_tensor(file) for _ in range(num_tensors)]
            alignment = metadata.get("general.alignment", _ALIGNMENT)
            start = -(-file.tell() // alignment) * alignment
            return GgufHeader(metadata, tensors, path.stat().st_size - start)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except (struct.error, ValueError, KeyError, TypeError, ArithmeticError, MemoryError, RecursionError):
        raise ConfigurationError(
            f"the header of {path.name} is truncated or damaged: download the file again"
        ) from None


def _tensor(file: BufferedReader) -> GgufTensor:
    name = _string(file)
    (num_dimensions,) = _unpack(file, "<I")
    shape = _unpack(file, f"<{num_dimensions}Q")
    kind, offset = _unpack(file, "<IQ")
    return GgufTensor(name, shape, kind, offset)


def _value(file: BufferedReader, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        element, length = _unpack(file, "<IQ")
        _skip(file, element, length)
        return length
    return _unpack(file, f"<{_SCALARS[kind]}")[0]


def _skip(file: BufferedReader, kind: int, length: int) -> None:
    """Skip `length` values of an array."""
    if kind in _SCALARS:
        file.seek(length * struct.calcsize(f"<{_SCALARS[kind]}"), 1)
        return
    for _ in range(length):
        if kind == _STRING:
            (size,) = _unpack(file, "<Q")
            file.seek(size, 1)
        else:
            element, inner = _unpack(file, "<IQ")
            _skip(file, element, inner)


def _string(file: BufferedReader) -> str:
    (length,) = _unpack(file, "<Q")
    if length > _LONGEST_STRING:
        raise ValueError(length)
    return file.read(length).decode(errors="replace")


def _unpack(file: BufferedReader, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
