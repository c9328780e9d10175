"""Linear layers repacked for one CPU: nn.Module replacements of a loaded model's linears, fastest for each precision.

`pack` stacks linears that share their input and packs them into one module; `pack_linears` replaces what is left in a
model. A module maps (..., in_features) to (..., out_features), as nn.Linear does. What no kernel takes stays plain.
"""

from typing import Any

import torch
from torch import Tensor, nn

from inference_server.cpu.linear.amx.layers import Bf16Linear, Int4Linear, Int8Linear, can_gate, has_kernel
from inference_server.cpu.linear.integer_weights import GROUP, Int4, Int8, int4_of, int8_of
from inference_server.cpu.linear.torch_integer import TorchLinear
from inference_server.precision import Precision, cpu_multiplies_bfloat16

# Rows from which bfloat16 products are faster than torch's of integers.
_MANY_ROWS = 8
# oneDNN lays weights out for a number of rows; this layout is good for one row and for many.
_LAYOUT_ROWS = 32


class PrepackedLinear(nn.Module):
    """A 16-bit product on weights (out_features, in_features) that oneDNN has laid out once, instead of at each call."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("bias", bias)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _LAYOUT_ROWS)
        self.weight_bytes = weight.numel() * weight.element_size()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return output


class ByRowsLinear(nn.Module):
    """Integer weights for few rows, and the same weights once more in bfloat16 for many: a prompt, not a decode step."""

    def __init__(self, few: nn.Module, many: PrepackedLinear, min_rows: int) -> None:
        super().__init__()
        self.out_features, self.in_features = many.out_features, many.in_features
        self.few, self.many = few, many
        self._min_rows = min_rows

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor
        if x.numel() < self._min_rows * self.in_features:
            output = self.few(x)
        else:
            output = self.many(x.bfloat16()).float()
        return output


def _weight_only(weight: Int8 | Int4, bias: Tensor | None, batch_invariant: bool, is_gated: bool) -> nn.Module:
    out_features, in_features = weight.codes.shape
    if isinstance(weight, Int8) and has_kernel("int8", in_features):
        return Int8Linear.of(weight, bias, is_gated=is_gated)
    if isinstance(weight, Int4) and has_kernel("int4", in_features):
        return Int4Linear.of(weight, bias, batch_invariant=batch_invariant, is_gated=is_gated)
    # What torch's operations ask for; the one for int8 does not check it.
    if in_features % 32 or (isinstance(weight, Int4) and out_features % 16):
        return _plain(weight.dequantize(), bias)
    few = TorchLinear(weight, bias)
    if batch_invariant or not cpu_multiplies_bfloat16():
        return few
    wide_bias = None if bias is None else bias.bfloat16()
    return ByRowsLinear(few, PrepackedLinear(weight.dequantize().bfloat16(), wide_bias), _MANY_ROWS)


def pack(
    linears: list[Any],
    precision: Precision,
    *,
    batch_invariant: bool = False,
    is_head: bool = False,
    is_gated: bool = False,
) -> nn.Module:
    """One module for linears that share their input; its output is theirs, one after the other.

    `precision` is the one in force for these linears (an output head of an int4 model is packed as int8). A Linear8bitLt
    of bitsandbytes is packed from its own integers whatever `precision` says. Weights are freed with their linears. The
    output of a head may be float32, though rounded as the others. `is_gated`: the two linears are gate and up of an MLP,
    and a module whose `is_gated` is true gives silu(gate) * up; where no kernel does that, the module lacks it.
    """
    is_gated = is_gated and can_gate(linears[0].out_features)
    bias = _stacked_bias(linears)
    if precision == "bitsandbytes-int8" or any(is_int8(linear) for linear in linears):
        return _weight_only(int8_of(linears), bias, batch_invariant, is_gated)
    if precision == "int4" and linears[0].in_features % GROUP == 0:
        return _weight_only(int4_of(linears), bias, batch_invariant, is_gated)
    weight = torch.cat([linear.weight.detach() for linear in linears])
    if weight.dtype == torch.bfloat16 and has_kernel("bf16", weight.shape[1]):
        return Bf16Linear.of(weight, bias, is_head=is_head, is_gated=is_gated)
    if weight.dtype == torch.bfloat16 and cpu_multiplies_bfloat16():
        return PrepackedLinear(weight, bias)
    return linears[0] if len(linears) == 1 else _plain(weight, bias)


def pack_linears(model: Any, precision: Precision, *, batch_invariant: bool = False) -> None:
    """Replace every linear of a loaded model in place. The head of an int4 model gets 8 bits, as in GGUF files."""
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if is_packable(child):
                exact = "bitsandbytes-int8" if child is head and precision == "int4" else precision
                is_head = child is head
                setattr(module, name, pack([child], exact, batch_invariant=batch_invariant, is_head=is_head))


def is_packable(module: nn.Module) -> bool:
    """A plain linear of torch, or bitsandbytes' int8 linear; not a subclass that does something else."""
    return type(module) is nn.Linear or is_int8(module)


def is_int8(module: nn.Module) -> bool:
    return type(module).__name__ == "Linear8bitLt"


def _stacked_bias(linears: list[Any]) -> Tensor | None:
    if all(linear.bias is None for linear in linears):
        return None
    dtype = next(linear.bias.dtype for linear in linears if linear.bias is not None)
    zeros = [torch.zeros(linear.out_features, dtype=dtype) for linear in linears]
    return torch.cat(
        [zero if each.bias is None else each.bias.detach() for each, zero in zip(linears, zeros, strict=True)]
    )


def _plain(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
