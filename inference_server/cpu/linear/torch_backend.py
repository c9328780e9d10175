"""The linear backend of torch's own operations, for layers and CPUs without a compiled kernel.

torch's matrix products with integer weights are fast with bfloat16 activations only, so these layers round to bfloat16.
"""

from typing import Any

import torch
from torch import Tensor, nn

from inference_server.cpu.linear.integer_weights import GROUP, Int4, Int8
from inference_server.cpu.linear.kernel_linear import KernelLinear, LinearKind, PackedWeights, WeightFormat
from inference_server.kernels.isa import cpu as isa

# The number of rows from which bfloat16 matrix products are faster than torch's integer ones.
_MANY_ROWS = 8
# oneDNN chooses the layout of the weights for an expected number of rows. The layout for 32 is fast for one row and for
# many.
_LAYOUT_ROWS = 32


class TorchBackend:
    """Backend whose layers use torch's operations. The packed cache does not store them."""

    name = "torch"
    layout_version = 1

    def __init__(self, *, has_bfloat16: bool | None = None) -> None:
        """`has_bfloat16`: True if bfloat16 matrix products are fast, None to detect it."""
        self._has_bfloat16 = has_bfloat16

    def obstacle(self) -> str | None:
        """Return None: torch runs on every CPU."""
        return None

    def supports(self, weight_format: WeightFormat, in_features: int) -> bool:
        """Return True: weights without a suitable integer operation are multiplied in float32."""
        return True

    def supports_gate(self, num_outputs: int) -> bool:
        """Return False: the caller multiplies silu(gate) and up itself."""
        return False

    def pack(self, weight: Tensor | Int8 | Int4, bias: Tensor | None, kind: LinearKind) -> nn.Module:
        """Return a layer with these weights."""
        if isinstance(weight, Tensor):
            is_prepacked = weight.dtype is torch.bfloat16 and self._multiplies_bfloat16()
            return PrepackedLinear(weight, bias) if is_prepacked else _plain_linear(weight, bias)
        out_features, in_features = weight.codes.shape
        # torch's integer matrix products require these multiples. The one for int8 does not check them.
        if in_features % 32 or (isinstance(weight, Int4) and out_features % 16):
            return _plain_linear(weight.dequantize(), bias)
        few = IntegerLinear(weight, bias)
        if kind.is_invariant or not self._multiplies_bfloat16():
            return few
        narrow_bias = None if bias is None else bias.bfloat16()
        return ByRowsLinear(few, PrepackedLinear(weight.dequantize().bfloat16(), narrow_bias), _MANY_ROWS)

    def from_packed(self, packed: PackedWeights) -> KernelLinear:
        """Raise ValueError: `pack` returns no packed weights."""
        raise ValueError("torch's linear layers are not kept packed")

    def _multiplies_bfloat16(self) -> bool:
        return isa.multiplies_bfloat16() if self._has_bfloat16 is None else self._has_bfloat16


class PrepackedLinear(nn.Module):
    """A linear layer in bfloat16 whose weights oneDNN reorders once, instead of at each call."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Reorder `weight`, (out_features, in_features) bfloat16. `bias`: (out_features,) bfloat16."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("bias", bias)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _LAYOUT_ROWS)
        self.num_bytes = weight.numel() * weight.element_size()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x, (…, in_features) bfloat16. Returns (…, out_features) bfloat16."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return output


class ByRowsLinear(nn.Module):
    """Linear layer that uses integer weights for few rows (decode), and the same in bfloat16 for many (prompts)."""

    def __init__(self, few: nn.Module, many: PrepackedLinear, min_rows: int) -> None:
        """`min_rows`: the number of rows from which `many` is used."""
        super().__init__()
        self.out_features, self.in_features = many.out_features, many.in_features
        self.few, self.many = few, many
        self._min_rows = min_rows

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x, (…, in_features) float32. Returns (…, out_features) float32."""
        output: Tensor
        if x.numel() < self._min_rows * self.in_features:
            output = self.few(x)
        else:
            output = self.many(x.bfloat16()).float()
        return output


class IntegerLinear(nn.Module):
    """A linear layer with int8 or int4 weights, which rounds its activations to bfloat16."""

    def __init__(self, weight: Int8 | Int4, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.codes.shape
        self.register_buffer("bias", None if bias is None else bias.float())
        self._is_int8 = isinstance(weight, Int8)
        if isinstance(weight, Int8):
            codes, scales = weight.codes, weight.scales
        else:
            codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.codes.int(), 1)
            # The operation computes a weight as (code - 8) * scale + offset.
            scales = torch.stack([weight.scales, weight.minima + 8 * weight.scales], -1).transpose(0, 1).contiguous()
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales.bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x, (…, in_features) float32. Returns (…, out_features) float32."""
        rows = x.reshape(-1, self.in_features).bfloat16()
        output: Tensor
        if self._is_int8:
            output = torch.ops.aten._weight_int8pack_mm(rows, self.codes, self.scales)
        else:
            output = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.codes, GROUP, self.scales)
        bias: Any = self.bias
        output = output.float() if bias is None else output.float() + bias
        return output.view(*x.shape[:-1], self.out_features)


def _plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return torch's linear layer with these tensors, without copying them."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
