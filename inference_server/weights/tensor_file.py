"""Reads a safetensors file into large pages, with several threads."""

import json
import os
import struct
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from inference_server.cpu.large_pages import Arena, aligned_bytes

_HEADER_LENGTH = struct.Struct("<Q")
_CHUNK = 8 << 20  # bytes that one thread reads at a time
_MAX_THREADS = 4  # more do not copy faster from the system's file cache
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_Part = tuple[int, memoryview]  # offset in the file, and memory for the bytes that begin there


@dataclass(frozen=True, slots=True)
class TensorFile:
    """The content of a safetensors file.

    Attributes:
        metadata: The file's metadata.
        tensors: The tensors by name. Tensors that are not mapped are in one arena.
    """

    metadata: dict[str, str]
    tensors: dict[str, Tensor]


@contextmanager
def reading(path: Path, *, mapped: Collection[str] = ()) -> Iterator[TensorFile]:
    """Yield a safetensors file while threads read it. The tensors are complete after the `with` block.

    Args:
        path: The file.
        mapped: Names of tensors that stay in the file, which is mapped into memory.

    Raises:
        SafetensorError: The file is damaged.
        OSError: The file cannot be read.
        ValueError: A tensor has a dtype that this module does not read, or the file became shorter.
    """
    with safe_open(path, framework="pt") as file:  # checks the whole header, and that the file is complete
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in mapped}
    header, start = _header(path)
    entries = {name: entry for name, entry in header.items() if name not in mapped}
    arena = Arena(sum(aligned_bytes(_num_bytes(entry)) for entry in entries.values()))
    parts: list[_Part] = []
    for name, entry in entries.items():
        tensors[name] = arena.tensor(_dtype(entry["dtype"]), tuple(entry["shape"]))
        content = memoryview(tensors[name].view(-1).view(torch.uint8).numpy())
        offset = start + entry["data_offsets"][0]
        parts += ((offset + first, content[first : first + _CHUNK]) for first in range(0, len(content), _CHUNK))
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, "read-weights") as pool:
        pending = [pool.submit(_fill, path, parts[first::threads]) for first in range(threads)]
        yield TensorFile(metadata, tensors)
        for one in pending:
            one.result()


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header's entry for each tensor, and the offset of the tensor data in the file."""
    with path.open("rb") as file:
        (num_bytes,) = _HEADER_LENGTH.unpack(file.read(_HEADER_LENGTH.size))
        header = json.loads(file.read(num_bytes))
    header.pop("__metadata__", None)
    return header, _HEADER_LENGTH.size + num_bytes


def _num_bytes(entry: dict[str, Any]) -> int:
    first, end = entry["data_offsets"]
    return int(end - first)


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ValueError(f"packed weights of dtype {name} cannot be read")
    return _DTYPES[name]


def _fill(path: Path, parts: Iterable[_Part]) -> None:
    """Read parts of a file into memory. Raises ValueError if the file ends before a part does."""
    with path.open("rb", buffering=0) as file:
        for offset, content in parts:
            file.seek(offset)
            while content:
                count = file.readinto(content)
                if not count:
                    raise ValueError("the file is shorter than its header says")
                content = content[count:]
