"""Reads the header of a GGUF file as far as the sizes of its tensors, to recognise a file that is cut."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from inference_server.weights.fetching.disk_space import sized

_MAGIC = b"GGUF"
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type's number
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_ALIGNMENT = b"general.alignment"
_MAX_COUNT = 1 << 32


@dataclass(frozen=True, slots=True)
class GgufSizes:
    """Sizes of a GGUF file.

    Attributes:
        num_bytes: Bytes of the complete file.
        num_values: Number of weights in all tensors.
    """

    num_bytes: int
    num_values: int


def gguf_fault(path: Path) -> str | None:
    """Return a clause if a file is not a GGUF file or is cut: "it has 1.2 GB of 4.9 GB". None: it is complete.

    Raises:
        OSError: The file cannot be read.
    """
    actual = path.stat().st_size
    try:
        sizes = read_sizes(path)
    except EOFError:
        return f"the file is cut: its {sized(actual)} end within the header"
    except ValueError as error:
        return f"the file is not a GGUF file that can be read ({error})"
    return None if actual >= sizes.num_bytes else f"the file is cut: it has {sized(actual)} of {sized(sizes.num_bytes)}"


def read_sizes(path: Path) -> GgufSizes:
    """Return the sizes that a file's header states.

    Raises:
        ValueError: It is not a GGUF file, or it has types that are not known.
        EOFError: The file ends within the header.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return _Reader(file).sizes()


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def sizes(self) -> GgufSizes:
        """Read the header from its beginning."""
        if self._read(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        (version,) = struct.unpack("<I", self._read(4))
        if version not in (2, 3):
            raise ValueError(f"its version is {version}")
        num_tensors, num_entries = self._count(), self._count()
        alignment = 32
        for _ in range(num_entries):
            key = self._string()
            kind = self._uint32()
            if key == _ALIGNMENT and kind == _UINT32:
                alignment = self._uint32()
            else:
                self._skip(kind)
        end, num_values = 0, 0
        for _ in range(num_tensors):
            values, offset, num_bytes = self._tensor()
            num_values += values
            end = max(end, offset + num_bytes)
        start = -(-self._file.tell() // max(alignment, 1)) * alignment
        return GgufSizes(start + end, num_values)

    def _tensor(self) -> tuple[int, int, int]:
        """Return a tensor's number of values, its offset in the data, and its bytes."""
        from gguf.constants import GGML_QUANT_SIZES  # takes a tenth of a second to import

        self._string()
        values = 1
        for _ in range(self._uint32()):
            values *= self._count()
        kind, offset = self._uint32(), self._uint64()
        if kind not in GGML_QUANT_SIZES:
            raise ValueError(f"a tensor has the type {kind}, which is not known")
        block_values, block_bytes = GGML_QUANT_SIZES[kind]
        return values, offset, values // block_values * block_bytes

    def _skip(self, kind: int) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY:
            item, count = self._uint32(), self._count()
            if item in _SIZES:
                self._read(_SIZES[item] * count)
            else:
                for _ in range(count):
                    self._skip(item)
        elif kind in _SIZES:
            self._read(_SIZES[kind])
        else:
            raise ValueError(f"an entry has the type {kind}, which is not known")

    def _string(self) -> bytes:
        return self._read(self._count())

    def _count(self) -> int:
        count = self._uint64()
        if count > _MAX_COUNT:
            raise ValueError("a length in its header is not plausible")
        return count

    def _uint32(self) -> int:
        return int.from_bytes(self._read(4), "little")

    def _uint64(self) -> int:
        return int.from_bytes(self._read(8), "little")

    def _read(self, num_bytes: int) -> bytes:
        content = self._file.read(num_bytes)
        if len(content) < num_bytes:
            raise EOFError
        return content
