"""The linear backend of AMX, Intel's tile registers for int8 and bfloat16."""

from torch import Tensor

from inference_server.cpu.linear.amx.layers import (
    LAYOUT_VERSION,
    NAME,
    PANEL_OUTPUTS,
    Bf16Linear,
    Int4Linear,
    Int8Linear,
)
from inference_server.cpu.linear.integer_weights import GROUP, Int4, Int8
from inference_server.cpu.linear.kernel_linear import KernelLinear, LinearKind, PackedWeights, WeightFormat
from inference_server.kernels.amx.loader import amx_kernel
from inference_server.kernels.isa import cpu as isa

# The number of inputs must be a multiple of these.
_DIVISORS = {"bf16": 32, "int8": 64, "int4": GROUP}
# With more inputs, sums of int8 products could overflow int32, and a panel of int4 codes could overflow the stack.
_MAX_INPUTS = 32768


class AmxBackend:
    """Backend that stores weights in panels of 32 outputs, each a sequence of tiles."""

    name = NAME
    layout_version = LAYOUT_VERSION

    def obstacle(self) -> str | None:
        """Return the reason why this CPU cannot run AMX kernels; None if it can."""
        return isa.amx_obstacle()

    def supports(self, weight_format: WeightFormat, in_features: int) -> bool:
        """Check whether a kernel takes weights of this format and width. Compiles the kernel if necessary."""
        divisor = _DIVISORS.get(weight_format)
        fits = divisor is not None and in_features % divisor == 0 and in_features <= _MAX_INPUTS
        return fits and amx_kernel(f"linear-{weight_format}") is not None

    def supports_gate(self, num_outputs: int) -> bool:
        """Check whether `num_outputs` gate outputs fill complete half panels."""
        return num_outputs % (PANEL_OUTPUTS // 2) == 0

    def pack(self, weight: Tensor | Int8 | Int4, bias: Tensor | None, kind: LinearKind) -> KernelLinear:
        """Return a layer with these weights in panels."""
        if isinstance(weight, Int8):
            return Int8Linear.pack(weight, bias, kind)
        if isinstance(weight, Int4):
            return Int4Linear.pack(weight, bias, kind)
        return Bf16Linear.pack(weight, bias, kind)

    def from_packed(self, packed: PackedWeights) -> KernelLinear:
        """Return the layer for weights that `pack` stored in an earlier process."""
        classes: dict[str, type[KernelLinear]] = {"bf16": Bf16Linear, "int8": Int8Linear, "int4": Int4Linear}
        return classes[packed.kind.weight_format](packed)
