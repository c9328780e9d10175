"""A linear layer whose weights are in a GGUF file, and memory for the packed layers."""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference_server.cpu.linear.backends import from_packed
from inference_server.cpu.linear.integer_weights import (
    Int4Pairs,
    Int8,
    rounded_like_bitsandbytes,
    rounded_to_int4,
    rounded_to_int8,
)
from inference_server.cpu.linear.kernel_linear import KernelLinear, WeightFormat
from inference_server.cpu.linear.stored_linear import StoredLinear, divides_into_groups
from inference_server.precision import Precision
from inference_server.weights.gguf.file import FileTensor, read_rows
from inference_server.weights.large_pages import Arena, aligned_bytes

_CHUNK_WEIGHTS = 1 << 18  # weights that are computed in float32 at a time: they fit into a core's cache
_BLOCK_BYTES = 64 << 20  # memory that is reserved at a time


class Places:
    """Memory in large pages for packed layers. It is reserved in blocks, whose unused ends occupy no memory."""

    def __init__(self) -> None:
        self._arena: Arena | None = None
        self._left = 0
        self.sources: dict[
            int, list[FileLinear]
        ] = {}  # by address of a kept layer's weights: the layers that it contains

    def moved(self, tensor: Tensor) -> Tensor:
        """Return a contiguous copy."""
        needed = aligned_bytes(tensor.nbytes)
        if self._arena is None or needed > self._left:
            self._left = max(needed, _BLOCK_BYTES)
            self._arena = Arena(self._left)
        self._left -= needed
        return self._arena.tensor(tensor.dtype, tuple(tensor.shape)).copy_(tensor)


class FileLinear(StoredLinear):
    """A linear layer whose weights are one tensor of a GGUF file, possibly with its rows in another order."""

    def __init__(
        self,
        path: Path,
        tensor: FileTensor,
        places: Places,
        *,
        heads: int | None = None,
        bias: Tensor | None = None,
        is_head: bool = False,
        widens: bool = True,
    ) -> None:
        """Describe the layer.

        Args:
            path: The file.
            tensor: The weights' tensor.
            places: Memory for the packed layer.
            heads: Number of heads, if the file has the two halves of each head's outputs interleaved; else None.
            bias: (out_features,), or None.
            is_head: The layer is the output head, which bitsandbytes does not round.
            widens: Weights of more than 4 bits are packed as int8 in precision int4. False rounds them to int4.
        """
        super().__init__(tensor.shape[-1], tensor.num_rows, bias)
        self.path, self.tensor, self.heads = path, tensor, heads
        self.is_head, self.widens, self._places = is_head, widens, places

    def weight_format(self, precision: Precision) -> WeightFormat:
        """Return the format in which the layer's own weights are packed in a precision."""
        if precision == "bitsandbytes-int8":
            return "int8"
        if precision == "int4" and divides_into_groups(self.in_features):
            return "int8" if self.widens and 4 < self.tensor.format.bits <= 8 else "int4"
        return "bf16" if precision == "bfloat16" else "float32"

    def int4(self) -> Int4Pairs:
        """Read the weights as int4: those of Q4_0, Q4_1 and Q4_K as they are, others rounded."""
        codes = self.tensor.format.int4
        parts = [
            codes(rows) if codes else Int4Pairs.of(rounded_to_int4(self.tensor.format.weights(rows)))
            for rows in self._chunks()
        ]
        if len(parts) == 1:
            return parts[0]
        return Int4Pairs(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("pairs", "scales", "minima"))
        )

    def int8(self) -> Int8:
        """Read the weights as int8: rounded as bitsandbytes does, but the head with one rounding less."""
        rounded = rounded_to_int8 if self.is_head else rounded_like_bitsandbytes
        codes = torch.empty(self.out_features, self.in_features, dtype=torch.int8)
        scales = torch.empty(self.out_features)
        self._fill(
            rounded, lambda part, first, end: (codes[first:end].copy_(part.codes), scales[first:end].copy_(part.scales))
        )
        return Int8(codes, scales)

    def plain(self, dtype: torch.dtype) -> Tensor:
        """Read the weights, (out_features, in_features) of `dtype`."""
        weights = torch.empty(self.out_features, self.in_features, dtype=dtype)
        self._fill(lambda part: part, lambda part, first, end: weights[first:end].copy_(part))
        return weights

    def keep(self, layer: nn.Module, linears: Items[Any]) -> nn.Module:
        """Return the packed layer in large pages. Layers without a kernel stay where they are."""
        if not isinstance(layer, KernelLinear):
            return layer
        packed = layer.packed
        moved: dict[str, Any] = {
            name: None if (tensor := getattr(packed, name)) is None else self._places.moved(tensor)
            for name in ("weights", "scales", "bias")
        }
        kept = from_packed(replace(packed, **moved))
        self._places.sources[kept.packed.weights.data_ptr()] = list(linears)
        return kept

    def _fill(self, convert: Callable[[Tensor], Any], write: Callable[[Any, int, int], object]) -> None:
        """Convert the weights in float32 chunk by chunk, and write each chunk to its rows."""
        first = 0
        for rows in self._chunks():
            end = first + len(rows)
            write(convert(self.tensor.format.weights(rows)), first, end)
            first = end

    def _chunks(self) -> Iterator[Tensor]:
        """Yield the bytes of all rows in the layer's order, several rows at a time."""
        count = max(1, _CHUNK_WEIGHTS // self.in_features)
        if self.heads is not None:
            order = row_order(self.out_features, self.heads)
            yield from torch.split(read_rows(self.path, self.tensor, 0, self.out_features)[order], count)
            return
        for first in range(0, self.out_features, count):
            yield read_rows(self.path, self.tensor, first, min(count, self.out_features - first))


def row_order(num_rows: int, heads: int) -> Tensor:
    """Return the file's row of each output, (num_rows,) int64, of a layer whose heads' halves are interleaved in the file.

    llama.cpp rotates neighbouring outputs, transformers the outputs of both halves.
    """
    return torch.arange(num_rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)
