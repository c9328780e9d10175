"""Reads the weights of a linear layer from a GGUF file."""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference_server.cpu.embedding import Embedding, StoredEmbedding, rows_kernel
from inference_server.cpu.linear.backends import from_packed
from inference_server.cpu.linear.integer_weights import (
    Int4Pairs,
    Int8,
    rounded_like_bitsandbytes,
    rounded_to_int4,
    rounded_to_int8,
)
from inference_server.cpu.linear.kernel_linear import KernelLinear, WeightFormat
from inference_server.cpu.linear.stored_linear import StoredLinear, StoredRows, divides_into_groups
from inference_server.kernels.jit import arguments
from inference_server.kernels.jit.kernel import kernel
from inference_server.linears.plain import GROUP
from inference_server.precision import Precision
from inference_server.weights.gguf.file import FileTensor, read_rows
from inference_server.weights.gguf.places import Places
from inference_server.weights.gguf.shared_tensors import in_use, shared, state_of

# Number of weights that are computed in float32 at a time. They fit into a core's cache, and torch does not split
# operations on fewer than 2**15 numbers among threads.
_CHUNK_WEIGHTS = (1 << 15) - 1
_READ_BYTES = 4 << 20  # bytes that are read from the file at a time for a kernel
_READ_CHUNKS = 16  # chunks that are read from the file at a time


class FileLinear(StoredLinear):
    """A linear layer whose weights are one tensor of a GGUF file, possibly with its rows in a different order."""

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
            widens: In precision int4, weights of 5 to 8 bits are packed as int8 if True, and rounded to int4 if False.
        """
        super().__init__(tensor.shape[-1], tensor.num_rows, bias)
        self.path, self.tensor, self.heads = path, tensor, heads
        self.is_head, self.widens, self._places = is_head, widens, places

    def weight_format(self, precision: Precision) -> WeightFormat:
        """Return the format to which this layer alone would be packed in a precision."""
        if precision == "bitsandbytes-int8":
            return "int8"
        if precision == "int4" and divides_into_groups(self.in_features):
            return "int8" if self.widens and 4 < self.tensor.format.bits <= 8 else "int4"
        return "bf16" if precision == "bfloat16" else "float32"

    def int4(self) -> Int4Pairs:
        """Read the weights as int4: the file's own codes for Q4_0, Q4_1 and Q4_K, rounded codes for other formats."""
        own_format = self.tensor.format
        if (exact := own_format.int4) is not None:
            rows = read_rows(self.path, self.tensor, 0, self.out_features)
            return exact(rows if self.heads is None else rows[row_order(self.out_features, self.heads)])
        groups = (self.out_features, self.in_features // GROUP)
        whole = Int4Pairs(
            torch.empty(*groups, GROUP // 2, dtype=torch.uint8),
            torch.empty(groups, dtype=torch.float16),
            torch.empty(groups, dtype=torch.float16),
        )

        def write(part: Int4Pairs, first: int, end: int) -> None:
            for name in ("pairs", "scales", "minima"):
                getattr(whole, name)[first:end] = getattr(part, name)

        self._fill(lambda rows: Int4Pairs.of(rounded_to_int4(own_format.weights(rows))), write)
        return whole

    def int8(self) -> Int8:
        """Read the weights as int8, rounded to float16 first as bitsandbytes does, except for the output head."""
        rounded = rounded_to_int8 if self.is_head else rounded_like_bitsandbytes
        codes = torch.empty(self.out_features, self.in_features, dtype=torch.int8)
        scales = torch.empty(self.out_features)

        def write(part: Int8, first: int, end: int) -> None:
            codes[first:end], scales[first:end] = part.codes, part.scales

        self._fill(lambda rows: rounded(self.tensor.format.weights(rows)), write)
        return Int8(codes, scales)

    def plain(self, dtype: torch.dtype) -> Tensor:
        """Read the weights, (out_features, in_features) of `dtype`."""
        weights = torch.empty(self.out_features, self.in_features, dtype=dtype)
        if self._write_rows(weights):
            return weights
        self._fill(self.tensor.format.weights, lambda part, first, end: weights[first:end].copy_(part))
        return weights

    def rows(
        self, linears: Items[Any], weight_format: WeightFormat, computed: Callable[[], Tensor | Int8 | Int4Pairs]
    ) -> StoredRows | None:
        """Read the rows of `linears`, of which this is the first.

        Returns None if the formats differ or no kernel reads the format.
        """
        name = self.tensor.format.name.lower()
        readable = arguments.STORED_INT4_FORMATS if weight_format == "int4" else arguments.STORED_FORMATS
        if name not in readable or any(each.tensor.type_id != self.tensor.type_id for each in linears):
            return None
        if len(linears) == 1 and (embedding := rows_in_use(self.path, self.tensor)) is not None:
            rows = [embedding]  # an output head that shares the embedding's weights
        else:
            sizes = [each.num_stored_bytes for each in linears]
            parts = torch.split(self._places.buffer(sum(sizes)), sizes)
            rows = [
                read_rows(each.path, each.tensor, 0, each.out_features, part)
                for each, part in zip(linears, parts, strict=True)
            ]
        addresses = torch.cat([each.row_addresses(part) for each, part in zip(linears, rows, strict=True)])
        options = (self.in_features, not self.is_head, self._places.num_threads, self._places.empty, computed)
        return StoredRows(name, rows, addresses, *options)

    @property
    def num_stored_bytes(self) -> int:
        """Return the size of the weights in the file, in bytes."""
        return self.out_features * self.tensor.row_bytes

    def row_addresses(self, rows: Tensor) -> Tensor:
        """Return the memory address of each output's row in `rows`, (num_rows,) int64."""
        return _row_offsets(len(rows), self.heads, self.tensor.row_bytes) + rows.data_ptr()

    def _write_rows(self, weights: Tensor) -> bool:
        """Decode the file's weights into `weights` with a kernel.

        Returns False if no kernel reads the file's format or writes the dtype, or if the file interleaves heads' rows.
        """
        name = self.tensor.format.name.lower()
        is_bf16 = weights.dtype is torch.bfloat16
        if (
            self.heads is not None
            or name not in arguments.STORED_FORMATS
            or not (is_bf16 or weights.dtype is torch.float32)
        ):
            return False
        function = kernel(f"{name}-rows", is_bf16)
        if function is None:
            return False
        count = max(1, _READ_BYTES // self.tensor.row_bytes)
        for first in range(0, self.out_features, count):
            rows = read_rows(self.path, self.tensor, first, min(count, self.out_features - first))
            part = weights[first : first + len(rows)]
            addresses = self.row_addresses(rows)  # must stay alive: the block contains its address
            block = arguments.stored(addresses, part, None, len(rows), self.in_features // GROUP)
            function.run(block, len(rows), part.numel() // 4)
        return True

    def keep(self, layer: nn.Module, linears: Items[Any]) -> nn.Module:
        """Return the packed layer in large pages, and record `linears` as its sources in `places`.

        A layer without a kernel is returned unchanged.
        """
        if not isinstance(layer, KernelLinear):
            return layer
        packed = layer.packed
        present = {name: getattr(packed, name) for name in ("weights", "scales", "bias")}
        moved: dict[str, Any] = {
            name: None if tensor is None else self._places.moved(tensor) for name, tensor in present.items()
        }
        is_here = all(moved[name] is present[name] for name in ("weights", "scales"))
        kept = layer if is_here else from_packed(replace(packed, **moved))
        self._places.sources[kept.packed.weights.data_ptr()] = list(linears)
        return kept

    def _fill(self, convert: Callable[[Tensor], Any], write: Callable[[Any, int, int], object]) -> None:
        """Convert the rows' bytes chunk by chunk, and write each result to its rows, with several threads."""

        @torch.inference_mode()  # the mode applies to a single thread
        def convert_part(chunks: Iterator[tuple[int, Tensor]]) -> None:
            for first, rows in chunks:
                write(convert(rows), first, first + len(rows))

        list(_threads().map(convert_part, self._parts(2 * torch.get_num_threads())))

    def _parts(self, count: int) -> list[Iterator[tuple[int, Tensor]]]:
        """Divide the layer into at most `count` parts.

        Each part yields chunks: the index of the chunk's first row, and the bytes of its rows.
        """
        chunk = max(1, _CHUNK_WEIGHTS // self.in_features)
        size = -(-self.out_features // (count * chunk)) * chunk
        ordered = None
        if self.heads is not None:
            order = row_order(self.out_features, self.heads)
            ordered = read_rows(self.path, self.tensor, 0, self.out_features)[order]
        starts = range(0, self.out_features, size)
        return [self._part(ordered, first, min(first + size, self.out_features), chunk) for first in starts]

    def _part(self, ordered: Tensor | None, start: int, end: int, chunk: int) -> Iterator[tuple[int, Tensor]]:
        for first in range(start, end, _READ_CHUNKS * chunk):
            count = min(_READ_CHUNKS * chunk, end - first)
            rows = (
                read_rows(self.path, self.tensor, first, count) if ordered is None else ordered[first : first + count]
            )
            for inner in range(0, count, chunk):
                yield first + inner, rows[inner : inner + chunk]


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), "read-gguf")


def read_embedding(path: Path, tensor: FileTensor, dtype: torch.dtype) -> Embedding:
    """Read the token embedding, in the file's number format if a kernel decodes it, otherwise as `dtype`."""
    width = tensor.shape[-1]
    function = rows_kernel(tensor.format.name.lower(), width, dtype)
    if function is None:
        return FileLinear(path, tensor, Places()).plain(dtype)
    rows = shared(state_of(path), _rows_key(tensor), lambda: read_rows(path, tensor, 0, tensor.num_rows))
    return StoredEmbedding(rows, function, width, dtype)


def rows_in_use(path: Path, tensor: FileTensor) -> Tensor | None:
    """Return the bytes of an embedding that an engine uses, (num_rows, row_bytes) uint8; None if they are not in memory."""
    rows: Tensor | None = in_use(state_of(path), _rows_key(tensor))
    return rows


def _rows_key(tensor: FileTensor) -> list[str]:
    return ["rows", tensor.name]


@lru_cache(maxsize=16)
def _row_offsets(num_rows: int, heads: int | None, row_bytes: int) -> Tensor:
    """Return the byte offset of each output's row in the file's tensor, (num_rows,) int64. Layers share the result."""
    numbers = torch.arange(num_rows) if heads is None else row_order(num_rows, heads)
    return numbers * row_bytes


def row_order(num_rows: int, heads: int) -> Tensor:
    """Return the index of each output's row in the file, (num_rows,) int64, if the file interleaves each head's halves.

    llama.cpp rotates pairs of neighbouring outputs. transformers pairs an output of a head's first half with one of its
    second half.
    """
    return torch.arange(num_rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)
