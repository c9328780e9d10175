"""Products of bfloat16 activations with bfloat16 weights by the compiled kernel of AMX.

A row's result has the same bits whatever other rows there are and however many.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from inference_server.kernels import arguments
from inference_server.kernels.compiled import Kernel
from inference_server.weight_only import OUTPUTS, padded, tile_kernel

_TILE_ROWS = 16


def _kernel(wide: bool) -> Kernel | None:
    def make() -> Any:
        from inference_server.kernels import amx, linear_bf16

        if not amx.HAS_BF16:
            raise RuntimeError("the compiler does not know this CPU's tile registers")
        return linear_bf16.make_bf16(wide)

    return tile_kernel("bf16-wide" if wide else "bf16", make)


def has_kernel(in_features: int) -> bool:
    return in_features % 32 == 0 and _kernel(False) is not None


@cache
def _tile_shapes(rest: int) -> Tensor:
    """What the tile registers hold: for whole groups of 32 rows, then for `rest` rows, fewer than 32."""
    shapes = torch.zeros(2, 64, dtype=torch.uint8)
    shapes[:, 0] = 1
    shapes[:, 16:32:2] = 64  # bytes in a row
    shapes[:, 48:56] = _TILE_ROWS
    first = max(1, min(rest, _TILE_ROWS))
    second = max(1, rest - _TILE_ROWS)
    shapes[1, 48:54] = torch.tensor([first, first, second, second, first, second])
    return shapes


class Bf16Linear(nn.Module):
    """A linear layer by the kernel of kernels/linear_bf16.py; `weights` lie as it reads them."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, wide: bool = False) -> None:
        """weight (out_features, in_features) bfloat16. `wide`: the output is float32, though rounded to bfloat16."""
        super().__init__()
        kernel = _kernel(wide)
        assert kernel is not None
        self.kernel = kernel
        self.out_features, self.in_features = weight.shape
        self.padded_features = self.out_features + -self.out_features % OUTPUTS
        self.out_dtype = torch.float32 if wide else torch.bfloat16
        tiles = padded(weight).view(-1, 2, 16, self.in_features // 32, 16, 2)
        self.register_buffer("weights", tiles.permute(0, 3, 1, 4, 2, 5).contiguous())
        self.register_buffer("bias", padded(torch.zeros(self.out_features) if bias is None else bias.float()))
        self._addresses = self.weights.data_ptr(), self.bias.data_ptr()  # type: ignore[operator]

    def memory_bytes(self, _num_rows: int) -> int:
        return 0

    def arguments(self, x: Tensor, output: Tensor, memory: Tensor) -> bytes:
        """x (num_rows, in_features) bfloat16, output (num_rows, padded_features) of `out_dtype`; no memory is used."""
        weights, bias = self._addresses
        num_rows = x.shape[0]
        sizes = (num_rows, self.in_features, self.padded_features)
        shapes = _tile_shapes(num_rows % 32).data_ptr()
        return arguments.linear(weights, 0, x.data_ptr(), output.data_ptr(), bias, *sizes, memory.data_ptr(), shapes)

    def _apply(self, *_: Any, **__: Any) -> "Bf16Linear":
        """Moving and casting leave it alone: the kernel reads these tensors where they are."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).contiguous()
        output = torch.empty(rows.shape[0], self.padded_features, dtype=self.out_dtype)
        work = self.arguments(rows, output, output)
        self.kernel.run(work, self.padded_features // OUTPUTS, self.in_features * self.padded_features // 10)
        if self.padded_features != self.out_features:
            output = output[:, : self.out_features].contiguous()
        return output.view(*x.shape[:-1], self.out_features)
