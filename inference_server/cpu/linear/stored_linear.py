"""Linear layers whose weights stay in a file until they are packed, so that loading needs little additional memory."""

from abc import abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference_server.cpu.linear.integer_weights import Int4Pairs, Int8
from inference_server.cpu.linear.kernel_linear import WeightFormat
from inference_server.linears.plain import GROUP
from inference_server.precision import Precision

# The formats in which layers that share their input can be stacked, from few to many bits.
_WIDTHS: tuple[WeightFormat, ...] = ("int4", "int8", "bf16", "float32")


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Weights in a file's number format. A kernel converts them to the layout that a linear layer's kernel reads.

    Attributes:
        format_name: A key of kernels.linear.stored.FORMATS.
        rows: The file's bytes, one tensor for each layer, (num_rows, row_bytes) uint8 each. Valid until the next layer is
            read.
        addresses: (out_features,) int64, the address of each output's row.
        in_features: Number of inputs.
        is_like_bitsandbytes: int8 weights have the codes of bitsandbytes.
        num_threads: The number of threads that the kernel may use.
        empty: Returns memory of a dtype and shape, filled with zeros.
        computed: Computes the weights without the kernel.
    """

    format_name: str
    rows: list[Tensor]
    addresses: Tensor
    in_features: int
    is_like_bitsandbytes: bool
    num_threads: int
    empty: Callable[[torch.dtype, tuple[int, ...]], Tensor]
    computed: Callable[[], Tensor | Int8 | Int4Pairs]

    def dequantize(self) -> Tensor:
        """Return the weights, (out_features, in_features) in a float dtype."""
        weight = self.computed()
        return weight if isinstance(weight, Tensor) else weight.dequantize()


class StoredLinear(nn.Module):
    """A placeholder for a linear layer, which `pack` replaces. It has no forward pass.

    Attributes:
        in_features: Number of inputs.
        out_features: Number of outputs.
        bias: (out_features,), or None.
    """

    def __init__(self, in_features: int, out_features: int, bias: Tensor | None) -> None:
        """Describe the layer; nothing is read."""
        super().__init__()
        self.in_features, self.out_features, self.bias = in_features, out_features, bias

    @abstractmethod
    def weight_format(self, precision: Precision) -> WeightFormat:
        """Return the format to which this layer alone would be packed in a precision."""

    @abstractmethod
    def int4(self) -> Int4Pairs:
        """Read the weights as int4. The number of inputs is a multiple of 32."""

    @abstractmethod
    def int8(self) -> Int8:
        """Read the weights as int8 codes with one scale for each output."""

    @abstractmethod
    def plain(self, dtype: torch.dtype) -> Tensor:
        """Read the weights, (out_features, in_features) of `dtype`."""

    @abstractmethod
    def rows(
        self,
        linears: "Items[StoredLinear]",
        weight_format: WeightFormat,
        computed: Callable[[], Tensor | Int8 | Int4Pairs],
    ) -> StoredRows | None:
        """Read the rows of `linears`, of which this is the first; None if no kernel converts them to `weight_format`."""

    @abstractmethod
    def keep(self, layer: nn.Module, linears: "Items[StoredLinear]") -> nn.Module:
        """Return the layer that was packed from `linears`, of which this is the first, in its final place in memory."""


def stacked_weights(
    linears: Items[StoredLinear], precision: Precision
) -> tuple[WeightFormat, Tensor | Int8 | Int4Pairs | StoredRows]:
    """Return the stacked weights, (out_features of all, in_features), and their format: the one with the most bits."""
    weight_format = max((linear.weight_format(precision) for linear in linears), key=_WIDTHS.index)

    def computed() -> Tensor | Int8 | Int4Pairs:
        if weight_format == "int4":
            fours = [linear.int4() for linear in linears]
            return Int4Pairs(
                _joined([each.pairs for each in fours]),
                _joined([each.scales for each in fours]),
                _joined([each.minima for each in fours]),
            )
        if weight_format == "int8":
            eights = [linear.int8() for linear in linears]
            return Int8(_joined([each.codes for each in eights]), _joined([each.scales for each in eights]))
        dtype = torch.bfloat16 if weight_format == "bf16" else torch.float32
        return _joined([linear.plain(dtype) for linear in linears])

    rows = None if weight_format == "float32" else linears[0].rows(linears, weight_format, computed)
    return weight_format, rows or computed()


def divides_into_groups(in_features: int) -> bool:
    """Return True if int4 weights of this width have whole groups."""
    return in_features % GROUP == 0


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
