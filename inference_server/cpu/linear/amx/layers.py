"""Linear layers on AMX, with weights in bfloat16, int8 or int4.

A row's result is bit-identical for every batch composition and batch size. The exception is int4 without
`is_invariant`, where few rows and many rows use different kernels. Integer kernels convert activations to 15-bit fixed
point and compute exactly from there. The int4 kernel for many rows rounds activations and weights to bfloat16.
"""

from abc import abstractmethod
from functools import cache

import torch
from torch import Tensor

from inference_server.cpu.linear.integer_weights import GROUP, Int4, Int8
from inference_server.cpu.linear.kernel_linear import KernelLinear, LinearKind, PackedWeights, layout_name
from inference_server.kernels.amx.loader import amx_kernel
from inference_server.kernels.amx.tile_config import tile_shapes
from inference_server.kernels.jit.kernel import Kernel

NAME = "amx"
LAYOUT_VERSION = 1  # increment when the order of the weights below changes
PANEL_OUTPUTS = 32  # two tiles of 16 outputs
_BLOCK_ROWS = 8  # rows of activations in a tile of the integer kernels: 8 high digits and 8 low digits
_TILE_ROWS = 16
_MAX_FEW_ROWS = 8  # rows up to which the int4 kernel for few rows is faster


def _required(name: str) -> Kernel:
    kernel = amx_kernel(name)
    if kernel is None:
        raise RuntimeError(f"the kernel {name} cannot run on this CPU")
    return kernel


@cache
def _integer_shapes(num_inputs: int) -> Tensor:
    """Return the tile shapes of integer kernels that take `num_inputs` inputs at a time.

    Tiles 0-3 are sums, 4-5 activations, 6-7 weights.
    """
    return tile_shapes([64] * 4 + [num_inputs] * 2 + [64] * 2, [16] * 6 + [num_inputs // 4] * 2)


@cache
def _bf16_shapes(rest: int) -> Tensor:
    """Return two sets of tile shapes, (128,) uint8: for groups of 32 rows, and for the `rest` of fewer than 32 rows."""
    first, second = max(1, min(rest, _TILE_ROWS)), max(1, rest - _TILE_ROWS)
    rows = ([_TILE_ROWS] * 6, [first, first, second, second, first, second])
    return torch.cat([tile_shapes([64] * 8, [*each, 16, 16]) for each in rows])


class _AmxLinear(KernelLinear):
    panel_outputs = PANEL_OUTPUTS

    @abstractmethod
    def plan(self, num_rows: int) -> tuple[Kernel, Tensor]:
        """Return the kernel for `num_rows` rows, and its tile shapes."""


class Bf16Linear(_AmxLinear):
    """Linear layer with bfloat16 weights.

    For every 32 inputs, a panel contains two tiles of (16 pairs of inputs, 16 outputs, 2 inputs).
    An output head returns float32 values that are rounded to bfloat16.
    """

    dtype = torch.bfloat16

    def __init__(self, packed: PackedWeights) -> None:
        super().__init__(packed)
        suffix = "-gated" if packed.kind.is_gated else "-head" if packed.kind.is_head else ""
        self._kernel = _required(f"linear-bf16{suffix}")
        self.out_dtype = torch.float32 if packed.kind.is_head else torch.bfloat16

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None, kind: LinearKind) -> "Bf16Linear":
        """Return a layer with `weight` (out_features, in_features) bfloat16."""
        panels = _in_panels(weight, kind.is_gated).view(-1, 2, 16, weight.shape[1] // 32, 16, 2)
        weights = panels.permute(0, 3, 1, 4, 2, 5).contiguous()
        return cls(_packed(kind, weight.shape, weights, None, bias))

    def plan(self, num_rows: int) -> tuple[Kernel, Tensor]:
        """Return the kernel, and the tile shapes for whole groups of 32 rows and for the remaining rows."""
        return self._kernel, _bf16_shapes(num_rows % 32)

    def workspace_bytes(self, num_rows: int) -> int:
        """Return 0: the kernel reads the activations as they are."""
        return 0


class _IntegerLinear(_AmxLinear):
    def workspace_bytes(self, num_rows: int) -> int:
        """Return the bytes of all rows' high and low digits, row scales and group sums."""
        width = self.in_features
        return -(-num_rows // _BLOCK_ROWS) * _BLOCK_ROWS * (2 * width + 4 + width // GROUP * 4)


class Int8Linear(_IntegerLinear):
    """Linear layer with int8 weights, 1 byte each. A tile of weights is (16 sets of inputs, 16 outputs, 4 inputs)."""

    def __init__(self, packed: PackedWeights) -> None:
        super().__init__(packed)
        self._kernel = _required("linear-int8-gated" if packed.kind.is_gated else "linear-int8")

    @classmethod
    def pack(cls, weight: Int8, bias: Tensor | None, kind: LinearKind) -> "Int8Linear":
        """Return a layer with these weights."""
        codes = _in_panels(weight.codes, kind.is_gated).view(-1, 2, 16, weight.codes.shape[1] // 64, 16, 4)
        codes = codes.permute(0, 3, 1, 4, 2, 5).contiguous()
        return cls(_packed(kind, weight.codes.shape, codes, _in_panels(weight.scales, kind.is_gated), bias))

    def plan(self, num_rows: int) -> tuple[Kernel, Tensor]:
        """Return the kernel and its tile shapes, the same for every number of rows."""
        return self._kernel, _integer_shapes(64)


class Int4Linear(_IntegerLinear):
    """Linear layer with int4 weights: a code of 4 bits each, and for every 32 inputs a scale and a minimum in float16.

    A tile of codes is (8 sets of inputs, 16 outputs, 4 inputs). The codes of two inputs share a byte.
    """

    def __init__(self, packed: PackedWeights) -> None:
        super().__init__(packed)
        suffix = "-gated" if packed.kind.is_gated else ""
        self._few = _required("linear-int4" + suffix)
        self._many = None if packed.kind.is_invariant else _required("linear-int4-many" + suffix)

    @classmethod
    def pack(cls, weight: Int4, bias: Tensor | None, kind: LinearKind) -> "Int4Linear":
        """Return a layer with these weights."""
        groups = weight.codes.shape[1] // GROUP
        halves = _in_panels(weight.codes, kind.is_gated).view(-1, 2, 16, groups, 8, 4).permute(0, 3, 1, 4, 2, 5)
        codes = (halves[:, :, :, :4] | (halves[:, :, :, 4:] << 4)).contiguous()
        factors = torch.stack([_in_panels(each, kind.is_gated) for each in (weight.scales, weight.minima)]).half()
        scales = factors.view(2, -1, PANEL_OUTPUTS, groups).permute(1, 3, 0, 2).contiguous()
        return cls(_packed(kind, weight.codes.shape, codes, scales, bias))

    def plan(self, num_rows: int) -> tuple[Kernel, Tensor]:
        """Return the kernel for few or for many rows, and its tile shapes."""
        if self._many is None or num_rows <= _MAX_FEW_ROWS:
            return self._few, _integer_shapes(GROUP)
        return self._many, _bf16_shapes(num_rows % 32)


def _packed(
    kind: LinearKind, shape: torch.Size, weights: Tensor, scales: Tensor | None, bias: Tensor | None
) -> PackedWeights:
    num_outputs, num_inputs = shape
    bias = _in_panels(torch.zeros(num_outputs) if bias is None else bias.float(), kind.is_gated)
    return PackedWeights(layout_name(NAME, LAYOUT_VERSION), kind, (num_outputs, num_inputs), weights, scales, bias)


def _in_panels(tensor: Tensor, is_gated: bool) -> Tensor:
    """Return the rows (one per output) in panel order, padded to complete panels."""
    if not is_gated:
        return _padded(tensor)
    order = torch.arange(len(tensor)).view(2, -1, PANEL_OUTPUTS // 2).transpose(0, 1).flatten()
    return tensor[order]


def _padded(tensor: Tensor) -> Tensor:
    """Return the rows, with rows of zeros appended to complete the last panel."""
    missing = -tensor.shape[0] % PANEL_OUTPUTS
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor.contiguous()
