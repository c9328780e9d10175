"""Memory for packed layers, and for a file's bytes while its layers are packed."""

import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from inference_server.cpu.large_pages import Arena, aligned_bytes

_BLOCK_BYTES = 64 << 20  # memory that is reserved at a time
_KEPT_BYTES = 16 << 20  # the largest buffer that a thread keeps, and the most that a small task reads
_Result = TypeVar("_Result")


class Places:
    """Memory in large pages for packed layers. It is reserved in blocks whose unused ends do not occupy physical
    memory. Several threads may use it at the same time."""

    def __init__(self) -> None:
        self._arena: Arena | None = None
        self._left = 0
        self._own: set[int] = set()
        self._lock = threading.Lock()
        # `buffer`: the thread's memory for a file's bytes. `is_one_of_many`: True in the threads of `in_parallel`.
        self._thread = threading.local()
        # By the address of a packed layer's weights: the FileLinear objects from which it was made (see FileLinear.keep).
        self.sources: dict[int, list[Any]] = {}

    def empty(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor of zeros in this memory."""
        needed = aligned_bytes(dtype.itemsize * math.prod(shape))
        with self._lock:
            if self._arena is None or needed > self._left:
                self._left = max(needed, _BLOCK_BYTES)
                self._arena = Arena(self._left)
            self._left -= needed
            tensor = self._arena.tensor(dtype, shape)
            self._own.add(tensor.data_ptr())
        return tensor

    def moved(self, tensor: Tensor) -> Tensor:
        """Return a contiguous copy in this memory, or the tensor itself if it is already there."""
        if tensor.data_ptr() in self._own:
            return tensor
        return self.empty(tensor.dtype, tuple(tensor.shape)).copy_(tensor)

    def buffer(self, num_bytes: int) -> Tensor:
        """Return memory of this thread, (num_bytes,) uint8. It is valid until the thread's next call.

        Buffers are reused: the system fills new memory with zeros, which takes longer than copying a file's bytes.
        """
        kept: Tensor | None = getattr(self._thread, "buffer", None)
        if kept is None or len(kept) < num_bytes:
            kept = torch.empty(num_bytes, dtype=torch.uint8)
            self._thread.buffer = kept if num_bytes <= _KEPT_BYTES else None
        return kept[:num_bytes]

    @property
    def num_threads(self) -> int:
        """Return the number of threads that a kernel may use: 1 in a task of `in_parallel`, otherwise all."""
        return 1 if getattr(self._thread, "is_one_of_many", False) else torch.get_num_threads()

    def in_parallel(self, tasks: "Iterable[tuple[int, Callable[[], _Result]]]") -> list[_Result]:
        """Run tasks and return their results in order. `tasks`: the number of bytes that each reads, and the task.

        Small tasks run at the same time, with one thread each: threads that share a small task wait for each other
        longer than they compute. Large tasks run one after another with all threads, so that few bytes of the file are
        in memory at a time.
        """
        listed = list(tasks)
        with ThreadPoolExecutor(torch.get_num_threads(), "pack", self._enter_pool) as pool:
            small = {
                index: pool.submit(task) for index, (num_bytes, task) in enumerate(listed) if num_bytes <= _KEPT_BYTES
            }
            large = {index: task() for index, (_, task) in enumerate(listed) if index not in small}
            return [small[index].result() if index in small else large[index] for index in range(len(listed))]

    def _enter_pool(self) -> None:
        self._thread.is_one_of_many = True
