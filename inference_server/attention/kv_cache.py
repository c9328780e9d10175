"""Stores the keys and values of all sequences in blocks of consecutive tokens, one pair of tensors for each layer.

This module works with block and row numbers. The block pool assigns blocks to sequences. Every layer has one tensor of
keys and one of values, (num_blocks, block_size, num_kv_heads, width). They are allocated when the layer is first used,
in the engine's warm-up, because the widths are not known before that. In some architectures, values are narrower than
keys, or widths differ between layers. Row r of a layer is token r % block_size of block r // block_size.
"""

import contextlib
import math
import mmap

import torch
from torch import Tensor

# Tokens of a block, on every device. Small blocks let prompts share more of a common beginning, but the kernels require
# a multiple of 32.
BLOCK_SIZE = 32

# The rows that pad a batch write to this block. No sequence owns it.
SCRATCH_BLOCK = 0
NUM_SCRATCH_BLOCKS = 1


class KVCache:
    """The paged KV cache of one model."""

    def __init__(
        self, *, num_blocks: int, block_size: int, device: torch.device, dtype: torch.dtype | None = None
    ) -> None:
        """Create a cache, whose memory is allocated layer by layer.

        Args:
            num_blocks: The number of blocks, including the scratch block.
            block_size: Tokens of a block.
            device: The model's device.
            dtype: The dtype of keys and values; None for the dtype of the first keys and values.
        """
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.device = device
        self._dtype = dtype
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def num_bytes(self) -> int:
        """Return the reserved bytes. On a CPU the system provides the memory only as blocks are written."""
        return sum(tensor.numel() * tensor.element_size() for layer in self._layers.values() for tensor in layer)

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens that fit into all blocks."""
        return self.num_blocks * self.block_size

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of one layer, each (num_blocks, block_size, num_kv_heads, width).

        The widths of keys and of values may differ.

        Args:
            index: The layer's number.
            key: (num_tokens, num_kv_heads, head_dim). The layer's first call determines the width of its cached keys,
                and their dtype if the constructor received none.
            value: (num_tokens, num_kv_heads, value_dim), which determines the same for the cached values.
        """
        tensors = self._layers.get(index)
        if tensors is None:
            tensors = self._layers[index] = (self._allocate(key), self._allocate(value))
        return tensors

    def _allocate(self, like: Tensor) -> Tensor:
        """Return zeros for all blocks, as wide as `like`."""
        dtype = self._dtype or like.dtype
        shape = (self.num_blocks, self.block_size, like.shape[-2], like.shape[-1])
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=self.device)
        # The system provides these zeroed pages only when they are used, whereas torch.zeros would write every byte.
        # Huge pages are disabled, because a sequence of a few tokens would then occupy 2 MiB in each layer.
        pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(AttributeError, OSError):
            pages.madvise(mmap.MADV_NOHUGEPAGE)
        return torch.frombuffer(pages, dtype=dtype).view(shape)
