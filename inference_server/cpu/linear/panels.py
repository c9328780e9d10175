"""The linear backend of compiled kernels: weights in panels of 16 outputs, in bfloat16, int8 or int4.

A row's result is bit-identical for every batch composition and batch size. The exception is int4 without `is_invariant`
on an instruction set that widens the weights for many rows. Integer kernels convert activations to 14-bit fixed point and
compute exactly from there. The kernel for widened weights rounds activations and weights to bfloat16.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inference_server.cpu.linear.integer_weights import Int4, Int4Pairs, Int8
from inference_server.cpu.linear.kernel_linear import (
    KernelLinear,
    LinearKind,
    PackedWeights,
    WeightFormat,
    layout_name,
)
from inference_server.cpu.linear.stored_linear import StoredRows
from inference_server.cpu.linear.weight_types import Weights
from inference_server.kernels.isa.choice import chosen, obstacle
from inference_server.kernels.jit import arguments
from inference_server.kernels.jit.kernel import Kernel, kernel
from inference_server.kernels.linear.workspace import INT4_TILE_INPUTS, INT8_TILE_INPUTS, workspace_bytes
from inference_server.linears.plain import GROUP

if TYPE_CHECKING:
    from inference_server.kernels.isa.instruction_set import InstructionSet

LAYOUT_VERSION = 1  # increment when this module stores weights in a different order
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
        """Use the kernels of `isa`. None: the best instruction set of this CPU, or the environment's choice."""
        self._given = isa

    @property
    def isa(self) -> "InstructionSet | None":
        """Return the instruction set, or None if kernels cannot run here."""
        return self._given or chosen()

    @property
    def name(self) -> str:
        """Return the layout's name.

        There are two layouts, because int8 codes are stored plus 128 if the instruction set multiplies unsigned bytes.
        """
        return "panels" if self.isa is None or self.isa.unsigned_codes else "signedpanels"

    def obstacle(self) -> str | None:
        """Return the reason why kernels cannot run on this CPU; None if they can."""
        return obstacle() if self.isa is None else None

    def supports(self, weight_format: WeightFormat, in_features: int) -> bool:
        """Check whether a kernel supports weights of this format and width. Compiles the kernel if necessary."""
        divisor = _DIVISORS.get(weight_format)
        fits = divisor is not None and in_features % divisor == 0 and in_features <= _MAX_INPUTS
        return fits and kernel(f"linear-{weight_format}", isa=self.isa) is not None

    def supports_gate(self, num_outputs: int) -> bool:
        """Check whether `num_outputs` gate outputs fill complete panels."""
        return num_outputs % _PANEL == 0

    def pack(self, weight: Weights, bias: Tensor | None, kind: LinearKind) -> KernelLinear:
        """Return a layer with these weights in panels."""
        if isinstance(weight, StoredRows):
            if (layer := self._of_rows(weight, bias, kind)) is not None:
                return layer
            weight = weight.computed()
        scales = None
        shape: tuple[int, ...]
        if isinstance(weight, Int8):
            weights, shape = self._int8(weight, kind.is_gated), weight.codes.shape
            scales = _in_order(weight.scales, kind.is_gated)
        elif isinstance(weight, Int4):
            weights, shape = _int4(weight, kind.is_gated), weight.codes.shape
        elif isinstance(weight, Int4Pairs):
            weights, shape = _int4_pairs(weight, kind.is_gated), (len(weight.pairs), weight.pairs.shape[1] * GROUP)
        else:
            weights, shape = _bf16(weight, kind.is_gated), weight.shape
        biases = _in_order(torch.zeros(shape[0]) if bias is None else bias.float(), kind.is_gated)
        return self._layer(kind, (shape[0], shape[1]), weights, scales, biases)

    def _layer(
        self, kind: LinearKind, shape: tuple[int, int], weights: Tensor, scales: Tensor | None, biases: Tensor
    ) -> KernelLinear:
        layout = layout_name(self.name, self.layout_version)
        return self.from_packed(PackedWeights(layout, kind, shape, weights, scales, biases))

    def _of_rows(self, stored: StoredRows, bias: Tensor | None, kind: LinearKind) -> KernelLinear | None:
        """Return a layer whose weights a kernel converts to panels; None if there is no such kernel."""
        is_int8, width = kind.weight_format == "int8", stored.in_features
        rounding = "-bitsandbytes" if is_int8 and stored.is_like_bitsandbytes else ""
        function = kernel(f"{stored.format_name}-{kind.weight_format}{rounding}", isa=self.isa)
        if function is None:
            return None
        rows = _in_order(stored.addresses, kind.is_gated)
        panels = len(rows) // _PANEL
        scales = stored.empty(torch.float32, (len(rows),)) if is_int8 else None
        biases = stored.empty(torch.float32, (len(rows),))
        if kind.weight_format == "int4":
            weights = stored.empty(torch.uint8, (panels, width // GROUP, 20 * _PANEL))
        else:
            dtype, inputs = (torch.int8, 4) if is_int8 else (torch.bfloat16, 2)
            weights = stored.empty(dtype, (panels, width // inputs, _PANEL, inputs))
        block = arguments.stored(rows, weights, scales, panels, width // GROUP)
        function.run(block, min(panels, stored.num_threads), weights.numel() // 2)
        if bias is not None:
            biases.copy_(_in_order(bias.float(), kind.is_gated))
        return self._layer(kind, (len(stored.addresses), width), weights, scales, biases)

    def from_packed(self, packed: PackedWeights) -> KernelLinear:
        """Return the layer for weights that `pack` stored in this or an earlier process."""
        classes: dict[str, type[PanelLinear]] = {"bf16": Bf16Linear, "int8": Int8Linear, "int4": Int4Linear}
        assert self.isa is not None
        return classes[packed.kind.weight_format](packed, self.isa)

    def _int8(self, weight: Int8, is_gated: bool) -> Tensor:
        """Return the codes in the order (panel, group of 4 inputs, output, input)."""
        assert self.isa is not None
        codes = _in_order(weight.codes, is_gated)
        panels = codes.view(-1, _PANEL, codes.shape[1] // 4, 4).transpose(1, 2)
        if not self.isa.unsigned_codes:
            return panels.contiguous()
        if (padding := len(codes) - len(weight.codes)) > 0:
            codes[-padding:] = -128  # becomes 0 below
        return torch.bitwise_xor(panels, -128, out=torch.empty(panels.shape, dtype=torch.int8))


def _bf16(weight: Tensor, is_gated: bool) -> Tensor:
    """Return the weights in the order (panel, pair of inputs, output, input)."""
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


def _int4_pairs(weight: Int4Pairs, is_gated: bool) -> Tensor:
    """Return the same records as `_int4`, which pairs the same two inputs in a byte as GGUF files do."""
    groups = weight.pairs.shape[1]
    fours = _in_order(weight.pairs, is_gated).view(torch.int32).view(-1, _PANEL, groups, 4)
    records = torch.empty(len(fours), groups, 20 * _PANEL, dtype=torch.uint8)
    factors = records[..., : 4 * _PANEL].view(torch.float16)
    for part, each in enumerate((weight.scales, weight.minima)):
        ordered = _in_order(each, is_gated).view(-1, _PANEL, groups)
        factors[..., part * _PANEL : (part + 1) * _PANEL] = ordered.transpose(1, 2)
    codes = records[..., 4 * _PANEL :].view(torch.int32).view(len(fours), groups, 4, _PANEL)
    codes.copy_(fours.permute(0, 2, 3, 1))
    return records


class PanelLinear(KernelLinear):
    """A linear layer whose weights are in panels."""

    panel_outputs = _OUTPUTS

    def __init__(self, packed: PackedWeights, isa: "InstructionSet") -> None:
        """Choose kernels of `isa`, the instruction set in whose layout the weights are packed."""
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
        """Return the kernel for `num_rows` rows. The kernel for many rows widens the weights."""
        return self._exact if self._min_rows is None or num_rows < self._min_rows else self._widened

    def workspace_bytes(self, num_rows: int) -> int:
        """Return the bytes of the rows' digits, row scales and sums, which also suffice for rows in bfloat16."""
        return workspace_bytes(num_rows, self.in_features, INT4_TILE_INPUTS)


def _in_order(tensor: Tensor, is_gated: bool) -> Tensor:
    """Return the rows (one per output) in panel order, padded with zeros to complete work items.

    For a gated layer, panels of gate and of up alternate.
    """
    if is_gated:
        order = torch.arange(len(tensor)).view(2, -1, _PANEL).transpose(0, 1).flatten()
        return tensor[order]
    missing = -tensor.shape[0] % _OUTPUTS
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor.contiguous()
