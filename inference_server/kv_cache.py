"""Keys and values of all running sequences, preallocated, one slot for each.

Knows slots and positions; knows nothing of sequences. Every layer has two tensors of shape
(num_slots, num_kv_heads, max_len, head_dim). They are allocated when a layer is first written (the engine's warm-up
does that), because only then the model has told the real shapes: some architectures' values are narrower than their
keys, or differ from layer to layer.
"""

import contextlib
import math
import mmap

import torch
from torch import Tensor


class KVCache:
    def __init__(self, *, num_slots: int, max_len: int, device: torch.device) -> None:
        self.num_slots = num_slots
        self.max_len = max_len
        self.device = device
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes reserved. On a CPU the system hands out the memory only as sequences grow into it."""
        return sum(tensor.numel() * tensor.element_size() for layer in self._layers.values() for tensor in layer)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, each (num_slots, num_kv_heads, max_len, head_dim).

        `key` and `value` (…, num_kv_heads, num_tokens, head_dim) tell dtype and widths at the first call.
        """
        tensors = self._layers.get(index)
        if tensors is None:
            tensors = self._layers[index] = (self._allocate(key), self._allocate(value))
        return tensors

    @torch.inference_mode()
    def clear(self, slot: int, length: int) -> None:
        """Zero `length` positions of a slot that may hold NaN or infinity, which a mask of -inf would not hide."""
        for tensors in self._layers.values():
            for tensor in tensors:
                tensor[slot, :, :length].zero_()

    def _allocate(self, like: Tensor) -> Tensor:
        """Zeros, not garbage: a key beyond a sequence's end is masked by adding -inf, and NaN would survive that."""
        shape = (self.num_slots, like.shape[-3], self.max_len, like.shape[-1])
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=like.dtype, device=self.device)
        # Zeroed pages of the system, of which none is touched: torch.zeros would write every byte. Nor shall the system
        # hand out 2 MiB where a sequence writes a few tokens.
        pages = mmap.mmap(-1, math.prod(shape) * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(AttributeError, OSError):
            pages.madvise(mmap.MADV_NOHUGEPAGE)
        return torch.frombuffer(pages, dtype=like.dtype).view(shape)
