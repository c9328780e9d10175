"""Products of float32 activations with integer weights: by the compiled kernels of AMX, or by torch's own operations.

The compiled kernels take activations as whole numbers of 15 bits and are exact beyond that: a row's result has the same
bits whatever other rows there are and however many. torch's operations are fast in bfloat16 alone, so activations are
rounded to it.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from inference_server.kernels import arguments
from inference_server.kernels.compiled import Kernel
from inference_server.quantized import GROUP, Int4, Int8

logger = logging.getLogger(__name__)

OUTPUTS = 32  # of a strip of weights
_ROWS = 8  # of a block of activations
# Beyond it, sums of int8 products might not fit int32, nor a strip of int4 the stack.
_WIDEST = 32768


@cache
def _has_tiles() -> bool:
    """Whether the CPU has tile registers, and the system lets this process use them."""
    return bool(torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx())


_kernels: dict[str, Kernel | None] = {}


def tile_kernel(name: str, make: Callable[[], Any]) -> Kernel | None:
    """The kernel that `make` describes; None without tile registers or where it cannot be compiled, which is logged once."""
    if name not in _kernels:
        _kernels[name] = None
        if _has_tiles():
            try:
                from inference_server.kernels import objects

                _kernels[name] = Kernel(objects.entry(f"linear-{name}", make, objects.default_folder()))
            except Exception as error:  # whatever it is, torch can do the work
                reason = f"{type(error).__name__}: {error}"
                logger.warning("no compiled %s linears, torch's instead (slower): %s", name, reason)
    return _kernels[name]


def _kernel(name: str) -> Kernel | None:
    def make() -> Any:
        from inference_server.kernels import amx, linear, linear_int4

        if not amx.HAS_INT8:
            raise RuntimeError("the compiler does not know this CPU's tile registers")
        return linear.make_int8() if name == "int8" else linear_int4.make_int4()

    return tile_kernel(name, make)


def has_kernel(name: str, in_features: int) -> bool:
    """`name`: int8 or int4."""
    divisor = 64 if name == "int8" else GROUP
    return in_features % divisor == 0 and in_features <= _WIDEST and _kernel(name) is not None


def _tile_shapes(num_inputs: int) -> Tensor:
    """What the tile registers hold, as the processor wants to be told: totals 0-3, activations 4-5, weights 6-7."""
    shapes = torch.zeros(64, dtype=torch.uint8)
    shapes[0] = 1
    shapes[16:32:2] = 64  # bytes in a row
    shapes[24:28:2] = num_inputs
    shapes[48:56] = 16  # rows
    shapes[54:56] = num_inputs // 4
    return shapes


class CompiledLinear(nn.Module):
    """A linear layer by one of the kernels of kernels/linear.py; `codes` and `scales` lie as it reads them."""

    def __init__(self, name: str, shape: tuple[int, int], codes: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        """`shape`: (out_features, in_features)."""
        super().__init__()
        kernel = _kernel(name)
        assert kernel is not None
        self.kernel = kernel
        self.out_features, self.in_features = shape
        self.padded_features = self.out_features + -self.out_features % OUTPUTS
        self.out_dtype = torch.float32
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        bias = padded(torch.zeros(self.out_features) if bias is None else bias.float())
        self.register_buffer("bias", bias)
        shapes = _tile_shapes(64 if name == "int8" else GROUP)
        self.register_buffer("shapes", shapes)
        arrays = (codes, scales, bias, shapes)
        self._addresses = [array.data_ptr() for array in arrays]

    def memory_bytes(self, num_rows: int) -> int:
        """What `arguments` asks for."""
        width = self.in_features
        return -(-num_rows // _ROWS) * _ROWS * (2 * width + 4 + width // GROUP * 4)

    def arguments(self, x: Tensor, output: Tensor, memory: Tensor) -> bytes:
        """x (num_rows, in_features) and output (num_rows, padded out_features) float32, memory int8."""
        codes, scales, bias, shapes = self._addresses
        addresses = (codes, scales, x.data_ptr(), output.data_ptr(), bias)
        sizes = (x.shape[0], self.in_features, self.padded_features)
        return arguments.linear(*addresses, *sizes, memory.data_ptr(), shapes)

    def _apply(self, *_: Any, **__: Any) -> "CompiledLinear":
        """Moving and casting leave it alone: the kernel reads these tensors where they are."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        width, outputs = self.in_features, self.padded_features
        rows = x.reshape(-1, width).contiguous()
        memory = torch.empty(self.memory_bytes(rows.shape[0]), dtype=torch.int8)
        output = torch.empty(rows.shape[0], outputs)
        self.kernel.run(self.arguments(rows, output, memory), outputs // OUTPUTS, width * outputs // 10)
        if outputs != self.out_features:
            output = output[:, : self.out_features].contiguous()
        return output.view(*x.shape[:-1], self.out_features)


def compiled_int8(weight: Int8, bias: Tensor | None) -> CompiledLinear:
    """1 byte a weight. A tile of weights is (16 times 4 inputs, 16 outputs, 4 inputs)."""
    out_features, in_features = weight.codes.shape
    codes, scales = padded(weight.codes), padded(weight.scales)
    codes = codes.view(-1, 2, 16, in_features // 64, 16, 4).permute(0, 3, 1, 4, 2, 5).contiguous()
    return CompiledLinear("int8", (out_features, in_features), codes, scales, bias)


def compiled_int4(weight: Int4, bias: Tensor | None) -> CompiledLinear:
    """5 bits a weight: 4 of the code, and 16 each of scale and minimum for every 32. A tile is (8, 16, 4)."""
    out_features, in_features = weight.codes.shape
    groups = in_features // GROUP
    tiles = padded(weight.codes).view(-1, 2, 16, groups, 8, 4).permute(0, 3, 1, 4, 2, 5)
    codes = (tiles[:, :, :, :4] | (tiles[:, :, :, 4:] << 4)).contiguous()
    factors = torch.stack([padded(weight.scales), padded(weight.minima)]).half()
    scales = factors.view(2, -1, OUTPUTS, groups).permute(1, 3, 0, 2).contiguous()
    return CompiledLinear("int4", (out_features, in_features), codes, scales, bias)


def padded(tensor: Tensor) -> Tensor:
    """With rows of zeros up to a whole strip."""
    missing = -tensor.shape[0] % OUTPUTS
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor.contiguous()


class TorchLinear(nn.Module):
    """A linear layer by torch's own operations on packed integers."""

    def __init__(self, weight: Int8 | Int4, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.codes.shape
        self.register_buffer("bias", None if bias is None else bias.float())
        self._is_int8 = isinstance(weight, Int8)
        if isinstance(weight, Int8):
            codes, scales = weight.codes, weight.scales
        else:
            codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.codes.int(), 1)
            # The operation takes a weight for (code - 8) * scale + offset.
            scales = torch.stack([weight.scales, weight.minima + 8 * weight.scales], -1).transpose(0, 1).contiguous()
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales.bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).bfloat16()
        output: Tensor
        if self._is_int8:
            output = torch.ops.aten._weight_int8pack_mm(rows, self.codes, self.scales)
        else:
            output = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.codes, GROUP, self.scales)
        bias: Any = self.bias
        output = output.float() if bias is None else output.float() + bias
        return output.view(*x.shape[:-1], self.out_features)
