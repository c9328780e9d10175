"""The linear backend of compiled kernels: weights in panels of 16 outputs, in bfloat16, int8 or int4.

A row's result is bit-identical for every batch composition and batch size. The exception is int4 without `is_invariant`
on an instruction set that widens the weights for many rows. Integer kernels convert activations to 14-bit fixed point and
compute exactly from there. The kernel for widened weights rounds activations and weights to bfloat16.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inference_server.cpu.linear.integer_weights import Int4, Int8
from inference_server.cpu.linear.kernel_linear import (
    KernelLinear,
    LinearKind,
    PackedWeights,
    WeightFormat,
    layout_name,
)
from inference_server.kernels.isa.choice import chosen, obstacle
from inference_server.kernels.jit.kernel import Kernel, kernel
from inference_server.kernels.jit.workspace import INT4_TILE_INPUTS, INT8_TILE_INPUTS, workspace_bytes
from inference_server.linears.plain import GROUP

if TYPE_CHECKING:
    from inference_server.kernels.isa.instruction_set import InstructionSet

LAYOUT_VERSION = 1  # increment when this module stores weights in another order
_PANEL = 16  # outputs of a panel
_OUTPUTS = 32  # outputs that a kernel computes at a time: two panels
# The number of inputs must be a multiple of these.
_DIVISORS = {"bf16": 32, "int8": INT8_TILE_INPUTS, "int4": GROUP}
# With more inputs, sums of int8 products could overflow int32, and widened int4 weights could overflow the stack.
_MAX_INPUTS = 32768


class PanelBackend:
    """Backend of the kernels for one instruction set."""

    layout_version = LAYOUT_VERSION

    def __init__(self, isa: "InstructionSet | None" = None) -> None:
        """`isa`: the instruction set; by default the best one of this CPU, or the one that the environment names."""
        self._given = isa

    @property
    def isa(self) -> "InstructionSet | None":
        """Return the instruction set, or None if kernels cannot run here."""
        return self._given or chosen()

    @property
    def name(self) -> str:
        """Return the layout's name.

        There are two: int8 codes are stored plus 128 if the instruction set multiplies unsigned bytes.
        """
        return "panels" if self.isa is None or self.isa.unsigned_codes else "signedpanels"

    def obstacle(self) -> str | None:
        """Return the reason why kernels cannot run on this CPU; None if they can."""
        return obstacle() if self.isa is None else None

    def supports(self, weight_format: WeightFormat, in_features: int) -> bool:
        """Check whether a kernel takes weights of this format and width. Compiles the kernel if necessary."""
        divisor = _DIVISORS.get(weight_format)
        fits = divisor is not None and in_features % divisor == 0 and in_features <= _MAX_INPUTS
        return fits and kernel(f"linear-{weight_format}", isa=self.isa) is not None

    def supports_gate(self, num_outputs: int) -> bool:
        """Check whether `num_outputs` gate outputs fill complete panels."""
        return num_outputs % _PANEL == 0

    def pack(self, weight: Tensor | Int8 | Int4, bias: Tensor | None, kind: LinearKind) -> KernelLinear:
        """Return a layer with these weights in panels."""
        scales = None
        if isinstance(weight, Int8):
            weights, shape = self._int8(weight, kind.is_gated), weight.codes.shape
            scales = _in_order(weight.scales, kind.is_gated)
        elif isinstance(weight, Int4):
            weights, shape = _int4(weight, kind.is_gated), weight.codes.shape
        else:
            weights, shape = _bf16(weight, kind.is_gated), weight.shape
        biases = _in_order(torch.zeros(shape[0]) if bias is None else bias.float(), kind.is_gated)
        layout = layout_name(self.name, self.layout_version)
        return self.from_packed(PackedWeights(layout, kind, (shape[0], shape[1]), weights, scales, biases))

    def from_packed(self, packed: PackedWeights) -> KernelLinear:
        """Return the layer for weights that `pack` stored in this or an earlier process."""
        classes: dict[str, type[PanelLinear]] = {"bf16": Bf16Linear, "int8": Int8Linear, "int4": Int4Linear}
        assert self.isa is not None
        return classes[packed.kind.weight_format](packed, self.isa)

    def _int8(self, weight: Int8, is_gated: bool) -> Tensor:
        """Return the codes in the order (panel, 4 inputs, output, input)."""
        assert self.isa is not None
        codes = weight.codes ^ -128 if self.isa.unsigned_codes else weight.codes
        panels = _in_order(codes, is_gated).view(-1, _PANEL, codes.shape[1] // 4, 4)
        return panels.transpose(1, 2).contiguous()


def _bf16(weight: Tensor, is_gated: bool) -> Tensor:
    """Return the weights in the order (panel, 2 inputs, output, input)."""
    panels = _in_order(weight, is_gated).view(-1, _PANEL, weight.shape[1] // 2, 2)
    return panels.transpose(1, 2).contiguous()


def _int4(weight: Int4, is_gated: bool) -> Tensor:
    """Return the records of all groups, (panel, group, 320) uint8: see kernels/linear/int4.py."""
    groups = weight.codes.shape[1] // GROUP
    fours = _in_order(weight.codes, is_gated).view(-1, _PANEL, groups, 8, 4).permute(0, 2, 3, 1, 4)
    codes = (fours[:, :, :4] | (fours[:, :, 4:] << 4)).reshape(-1, groups, GROUP * _PANEL // 2)
    factors = torch.stack([_in_order(each, is_gated) for each in (weight.scales, weight.minima)]).half()
    factors = factors.view(2, -1, _PANEL, groups).permute(1, 3, 0, 2).contiguous()
    records = [factors.view(torch.uint8).view(-1, groups, 4 * _PANEL), codes]
    return torch.cat(records, dim=2)


class PanelLinear(KernelLinear):
    """A linear layer whose weights are in panels."""

    panel_outputs = _OUTPUTS

    def __init__(self, packed: PackedWeights, isa: "InstructionSet") -> None:
        """`isa`: the instruction set of the kernel, whose layout the weights have."""
        self._isa = isa
        super().__init__(packed)

    def _required(self, name: str) -> Kernel:
        found = kernel(name + ("-gated" if self.packed.kind.is_gated else ""), isa=self._isa)
        if found is None:
            raise RuntimeError(f"the kernel {name} cannot be compiled")
        return found


class Bf16Linear(PanelLinear):
    """A linear layer with bfloat16 weights. An output head returns float32 values that are rounded to bfloat16."""

    dtype = torch.bfloat16

    def __init__(self, packed: PackedWeights, isa: "InstructionSet") -> None:
        super().__init__(packed, isa)
        self._kernel = self._required("linear-bf16-head" if packed.kind.is_head else "linear-bf16")
        self.out_dtype = torch.float32 if packed.kind.is_head else torch.bfloat16

    def plan(self, num_rows: int) -> Kernel:
        """Return the kernel, the same for every number of rows."""
        return self._kernel

    def workspace_bytes(self, num_rows: int) -> int:
        """Return 0: the kernel reads the activations as they are."""
        return 0


class Int8Linear(PanelLinear):
    """A linear layer with int8 weights, 1 byte each, and one scale for each output."""

    def __init__(self, packed: PackedWeights, isa: "InstructionSet") -> None:
        super().__init__(packed, isa)
        self._kernel = self._required("linear-int8")

    def plan(self, num_rows: int) -> Kernel:
        """Return the kernel, the same for every number of rows."""
        return self._kernel

    def workspace_bytes(self, num_rows: int) -> int:
        """Return the bytes of the rows' digits, row scales and sums."""
        return workspace_bytes(num_rows, self.in_features, INT8_TILE_INPUTS)


class Int4Linear(PanelLinear):
    """A linear layer with int4 weights: a code of 4 bits each, and for every 32 inputs a scale and a minimum in float16."""

    def __init__(self, packed: PackedWeights, isa: "InstructionSet") -> None:
        super().__init__(packed, isa)
        self._exact = self._required("linear-int4")
        self._min_rows = None if packed.kind.is_invariant else isa.min_rows_widened
        self._widened = self._exact if self._min_rows is None else self._required("linear-int4-widened")

    def plan(self, num_rows: int) -> Kernel:
        """Return the kernel for few or for many rows."""
        return self._exact if self._min_rows is None or num_rows < self._min_rows else self._widened

    def workspace_bytes(self, num_rows: int) -> int:
        """Return the bytes of the rows' digits, row scales and sums, which also suffice for rows in bfloat16."""
        return workspace_bytes(num_rows, self.in_features, INT4_TILE_INPUTS)


def _in_order(tensor: Tensor, is_gated: bool) -> Tensor:
    """Return the rows (one per output) in panel order, padded with zeros to complete work items."""
    if is_gated:
        order = torch.arange(len(tensor)).view(2, -1, _PANEL).transpose(0, 1).flatten()
        return tensor[order]
    missing = -tensor.shape[0] % _OUTPUTS
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor.contiguous()
