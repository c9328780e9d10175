"""Products of activations with integer weights by torch's own operations, where no kernel of ours is at hand.

They are fast in bfloat16 alone, so activations are rounded to it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from inference_server.cpu.linear.integer_weights import GROUP, Int4, Int8


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
