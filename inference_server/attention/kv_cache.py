"""Keys and values of all sequences, in blocks of neighbouring tokens, as one paged tensor pair for each layer.

Knows blocks and rows; knows nothing of sequences. Every layer has keys and values of shape
(num_blocks, block_size, num_kv_heads, head_dim), allocated when the layer is first written (the engine's warm-up does
that), because only then the model has told the real shapes: some architectures' values are narrower than their keys, or
differ from layer to layer. Row r of a layer is token r % block_size of block r // block_size.
"""

import contextlib
import math
import mmap

import torch
from torch import Tensor

# Tokens. Small on a CPU, where any size is as fast and small ones share more; torch's flash attention wants 256 on a GPU.
CPU_BLOCK_SIZE = 32
CUDA_BLOCK_SIZE = 256

# The rows that pad a batch write to this block. No sequence owns it.
SCRATCH_BLOCK = 0
NUM_SCRATCH_BLOCKS = 1


class KVCache:
    def __init__(
        self, *, num_blocks: int, block_size: int, device: torch.device, dtype: torch.dtype | None = None
    ) -> None:
        """`dtype` of keys and values, if it is not that in which the model computes them."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.device = device
        self._dtype = dtype
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes reserved. On a CPU the system hands out the memory only as blocks are written."""
        return sum(tensor.numel() * tensor.element_size() for layer in self._layers.values() for tensor in layer)

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * self.block_size

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, each (num_blocks, block_size, num_kv_heads, head_dim).

        `key` and `value` (num_tokens, num_kv_heads, head_dim) tell the widths at the first call, and the dtype if none was
        given.
        """
        tensors = self._layers.get(index)
        if tensors is None:
            tensors = self._layers[index] = (self._allocate(key), self._allocate(value))
        return tensors

    def _allocate(self, like: Tensor) -> Tensor:
        dtype = self._dtype or like.dtype
        shape = (self.num_blocks, self.block_size, like.shape[-2], like.shape[-1])
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=self.device)
        # Zeroed pages of the system, of which none is touched: torch.zeros would write every byte. Nor shall the system
        # hand out 2 MiB where a sequence writes a few tokens.
        pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(AttributeError, OSError):
            pages.madvise(mmap.MADV_NOHUGEPAGE)
        return torch.frombuffer(pages, dtype=dtype).view(shape)
