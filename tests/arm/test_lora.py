"""The kernel that adds LoRA adapters, on emulated Arm CPUs, against torch."""

import pytest
import torch

from inference_server.cpu.adapters import site
from inference_server.kernels.jit import arguments
from inference_server.lora.adapter import Pair
from tests.inference_server.kernels.test_ops import DTYPES

OUTPUTS, WIDTH = [48, 16], 64
ROWS = [1, 0, 2]  # the adapter of each row


@DTYPES
@pytest.mark.parametrize("is_gated", [False, True])
def test_each_row_gets_its_own_adapter(dtype, is_gated, place, call):
    outputs = [32, 32] if is_gated else OUTPUTS
    pairs = [[Pair(torch.randn(rank, WIDTH) / 8, torch.randn(count, rank) / 8) for count in outputs] for rank in (8, 3)]
    layer = site(pairs, outputs)
    copies = [place(each) for each in layer.matrices]
    addresses = {each.data_ptr(): copy.data_ptr() for each, copy in zip(layer.matrices, copies, strict=True)}
    table = layer.table.clone()
    table[..., :2].apply_(addresses.__getitem__)
    x, out = (place(torch.randn(len(ROWS), width).to(dtype)) for width in (WIDTH, sum(outputs)))
    gated = place(torch.full((len(ROWS), 32), float("nan"), dtype=dtype)) if is_gated else None
    halves = out.float().view(len(ROWS), 2, 2, 16).transpose(1, 2).flatten(1) if is_gated else out.float()
    for row, adapter in enumerate(ROWS):
        for part, first in enumerate((0, outputs[0])):
            if adapter:
                pair = pairs[adapter - 1][part]
                halves[row, first : first + outputs[part]] += pair.up @ (pair.down @ x[row].float())
    scratch = torch.zeros(len(ROWS), 2 * layer.max_rank)
    given = [place(each) for each in (torch.tensor(ROWS, dtype=torch.int32), table, layer.parts, scratch)]
    name = "lora-gated" if is_gated else "lora"
    call(arguments.lora(x, out, *given, gated), name, dtype == torch.bfloat16)
    gate, up = halves.to(dtype)[:, :32], halves.to(dtype)[:, 32:]
    found, wanted = (gated, torch.nn.functional.silu(gate) * up) if is_gated else (out, halves.to(dtype))
    tolerance = 2e-3 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
