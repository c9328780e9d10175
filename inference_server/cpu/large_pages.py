"""Memory for weights in pages of 2 MiB, where the system has them.

A matrix product with one row of activations reads every weight once. With pages of 4 KiB, the processor translates an
address every 4 KiB, and reads fewer bytes per second. Linux uses large pages for memory that is aligned to them, but on
many systems only on request.
"""

import contextlib
import ctypes
import mmap
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

_PAGE = 2 << 20  # the size of a large page on x86-64 and on Arm with base pages of 4 KiB
_ALIGNMENT = 64  # a cache line, and the widest vector


class Arena:
    """A block of memory that contains tensors. It is freed together with the last of them."""

    def __init__(self, num_bytes: int) -> None:
        """Reserve memory; the system provides its pages at the first access.

        Args:
            num_bytes: Sum of `aligned_bytes` over all tensors.

        Raises:
            MemoryError: The system has too little memory.
        """
        # Anonymous memory is zero. It has one page more than needed, so that the start can be aligned. It is private,
        # because Python's default is shared memory, which has no large pages.
        try:
            memory = mmap.mmap(-1, num_bytes + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"cannot allocate {num_bytes} bytes for weights") from error
        _request_large_pages(memory)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        self._bytes = whole[-whole.data_ptr() % _PAGE :][:num_bytes]
        self._used = 0

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor of zeros that is aligned to 64 bytes.

        Raises:
            MemoryError: The tensors together are larger than the arena.
        """
        num_bytes = dtype.itemsize * prod(shape)
        start, end = self._used, self._used + num_bytes
        if end > self._bytes.numel():
            raise MemoryError("the arena is too small for its tensors")
        self._used += aligned_bytes(num_bytes)
        return self._bytes[start:end].view(dtype).view(shape)


def aligned_bytes(num_bytes: int) -> int:
    """Return the memory that a tensor of `num_bytes` bytes occupies in an arena, in bytes."""
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies of tensors, together in one arena."""
    arena = Arena(sum(aligned_bytes(tensor.nbytes) for tensor in tensors.values()))
    return {name: arena.tensor(tensor.dtype, tuple(tensor.shape)).copy_(tensor) for name, tensor in tensors.items()}


def return_free_memory() -> None:
    """Return freed memory to the system, because the C library (glibc) keeps it. Loading a model frees much memory."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _request_large_pages(memory: mmap.mmap) -> None:
    """Request large pages. A system without them keeps its usual pages."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # Linux was built without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
