"""Linear layers in the layout of the kernels in kernels/linear, with their expected results.

The layouts are built from their description in the kernels' modules, independently of the server's own packing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from inference_server.kernels.isa.instruction_set import InstructionSet
from inference_server.kernels.jit import arguments
from inference_server.kernels.linear.workspace import INT4_TILE_INPUTS, INT8_TILE_INPUTS, workspace_bytes

INPUTS, OUTPUTS = 576, 96
TILES = INT4_TILE_INPUTS, INT8_TILE_INPUTS


@dataclass(frozen=True)
class Format:
    """A kind of linear layer.

    Attributes:
        weights: "bfloat16", "int8" or "int4".
        out_dtype: The dtype of its result. Activations of bfloat16 weights are bfloat16, otherwise float32.
        tolerance: The largest error relative to the largest result. The activations of integer kernels have 14 bits, so
            rounding is at most 2**-14 of a row's largest value at each input, and mostly cancels. bfloat16 has 8 bits.
        is_gated: Whether the result is silu(gate) * up.
    """

    weights: str
    out_dtype: torch.dtype
    tolerance: float
    is_gated: bool = False


# By the names of the kernels, after "linear-".
FORMATS = {
    "bf16": Format("bfloat16", torch.bfloat16, 2**-8),
    "bf16-head": Format("bfloat16", torch.float32, 2**-8),
    "bf16-gated": Format("bfloat16", torch.bfloat16, 1.5e-2, is_gated=True),
    "int8": Format("int8", torch.float32, 3e-4),
    "int8-gated": Format("int8", torch.float32, 6e-4, is_gated=True),
    "int4": Format("int4", torch.float32, 3e-4),
    "int4-gated": Format("int4", torch.float32, 6e-4, is_gated=True),
    "int4-widened": Format("int4", torch.float32, 1e-2),
    "int4-widened-gated": Format("int4", torch.float32, 1.5e-2, is_gated=True),
}


@dataclass(frozen=True)
class Layer:
    """Packed weights of INPUTS inputs and OUTPUTS outputs, and the same weights as float64."""

    format: Format
    packed: Tensor
    scales: Tensor
    bias: Tensor
    plain: Tensor  # (OUTPUTS, INPUTS) float64

    def expected(self, x: Tensor) -> Tensor:
        """Return the exact result for activations (rows, INPUTS), float64."""
        values = x.double() @ self.plain.T + self.bias
        if not self.format.is_gated:
            return values
        gate, up = values.view(len(x), OUTPUTS // 32, 2, 16).unbind(2)
        return (F.silu(gate) * up).flatten(1)

    def random_rows(self, num_rows: int) -> Tensor:
        """Return random activations in the layer's dtype."""
        return torch.randn(num_rows, INPUTS).to(torch.bfloat16 if self.format.weights == "bfloat16" else torch.float32)

    def run(self, x: Tensor, place: Callable[[Tensor], Tensor], call: Callable[[bytes], None]) -> Tensor:
        """Run the kernel on x, (rows, INPUTS).

        Args:
            x: The activations.
            place: Copies a tensor to memory that the kernel can use, aligned to 64 bytes.
            call: Calls the kernel with an argument block.
        """
        outputs = OUTPUTS // 2 if self.format.is_gated else OUTPUTS
        out = place(torch.full((len(x), outputs), float("nan"), dtype=self.format.out_dtype))
        size = max(2 * x.numel(), *(workspace_bytes(len(x), INPUTS, tile) for tile in TILES))
        inputs = (self.packed, self.scales, x, self.bias, torch.full((size,), 0x7F, dtype=torch.uint8))
        packed, scales, rows, bias, workspace = (place(tensor) for tensor in inputs)
        addresses = [tensor.data_ptr() for tensor in (packed, scales, rows, out, bias)]
        call(arguments.linear(*addresses, len(x), INPUTS, OUTPUTS, workspace.data_ptr()))
        return out


def layer(name: str, isa: InstructionSet, code: int | None = None) -> Layer:
    """Return a layer of a format with random weights, packed for an instruction set.

    `code`: the value of all integer codes, instead of random ones.
    """
    chosen, bias = FORMATS[name], torch.randn(OUTPUTS)
    no_scales = torch.zeros(1)
    if chosen.weights == "bfloat16":
        weight = torch.randn(OUTPUTS, INPUTS).bfloat16()
        return Layer(chosen, _in_panels(weight, 2), no_scales, bias, weight.double())
    if chosen.weights == "int8":
        codes = _codes(-127, 127, code)
        scales = torch.rand(OUTPUTS) / 50
        stored = (codes + 128).to(torch.uint8) if isa.unsigned_codes else codes.to(torch.int8)
        return Layer(chosen, _in_panels(stored, 4), scales, bias, codes.double() * scales.double()[:, None])
    codes = _codes(0, 15, code).to(torch.uint8)
    scales, minima = ((torch.rand(2, OUTPUTS, INPUTS // 32) - torch.tensor([0.0, 0.5])[:, None, None]) / 10).half()
    plain = codes.view(OUTPUTS, -1, 32) * scales.double()[..., None] + minima.double()[..., None]
    return Layer(chosen, _groups(codes, scales, minima), no_scales, bias, plain.flatten(1))


def _codes(lowest: int, highest: int, code: int | None) -> Tensor:
    shape = OUTPUTS, INPUTS
    return torch.randint(lowest, highest + 1, shape) if code is None else torch.full(shape, code)


def _in_panels(weight: Tensor, consecutive: int) -> Tensor:
    """Return (panels, inputs / consecutive, 16 outputs, consecutive inputs)."""
    panels = weight.view(len(weight) // 16, 16, -1, consecutive)
    return panels.permute(0, 2, 1, 3).contiguous()


def _groups(codes: Tensor, scales: Tensor, minima: Tensor) -> Tensor:
    """Return a record of 320 bytes for every panel and group of 32 inputs, as int4.py describes it."""
    panels, groups = len(codes) // 16, codes.shape[1] // 32
    by_group = codes.view(panels, 16, groups, 2, 4, 4).permute(0, 2, 3, 4, 1, 5)  # panel, group, half, quad, output, 4
    nibbles = (by_group[:, :, 0] | by_group[:, :, 1] << 4).reshape(panels, groups, 256)
    factors = torch.stack([scales, minima]).view(2, panels, 16, groups).permute(1, 3, 0, 2).contiguous()
    return torch.cat([factors.view(panels, groups, 32).view(torch.uint8), nibbles], -1)
