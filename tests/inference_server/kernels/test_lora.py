"""The kernel that adds LoRA adapters, on every instruction set, against torch."""

import pytest
import torch
import torch.nn.functional as F

from inference_server.cpu.adapters import Site, site
from inference_server.kernels.jit import arguments
from inference_server.kernels.jit.kernel import ENOUGH_NS, kernel
from inference_server.lora.adapter import Pair

pytestmark = pytest.mark.usefixtures("instruction_set")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
WIDTH = 96
OUTPUTS = [64, 16, 48]  # outputs of the parts of a layer
# The adapters of 9 rows. Adapter 2 has several ranks, and adapter 3 adapts only the middle part.
ROWS = [0, 1, 2, 3, 0, 2, 2, 1, 3]


def pair(rank: int, outputs: int, size: float = 1.0) -> Pair:
    return Pair(size * torch.randn(rank, WIDTH) / 8, torch.randn(outputs, rank) / 8)


def adapters(outputs: list[int]) -> list[list[Pair | None]]:
    torch.manual_seed(0)
    middle = len(outputs) // 2
    return [
        [pair(8, count) for count in outputs],
        [pair(3 + 9 * index, count, 1e-5) for index, count in enumerate(outputs)],
        [pair(16, count) if index == middle else None for index, count in enumerate(outputs)],
    ]


def run(found: Site, x: torch.Tensor, out: torch.Tensor, rows: list[int], gated: torch.Tensor | None = None) -> None:
    """Run the kernel. `out` and `gated` are changed."""
    function = kernel("lora" if gated is None else "lora-gated", x.dtype is torch.bfloat16)
    assert function is not None
    scratch = torch.full((len(rows), len(found.parts) * found.max_rank), float("nan"))
    indices = torch.tensor(rows, dtype=torch.int32)
    block = arguments.lora(x, out, indices, found.table, found.parts, scratch, gated)
    function.run(block, 4, ENOUGH_NS)


def expected(pairs: list[list[Pair | None]], x: torch.Tensor, out: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Return the results of all parts, float32."""
    wanted = out.float()
    for row, adapter in enumerate(rows):
        first = 0
        for part, count in enumerate(OUTPUTS):
            if adapter and (found := pairs[adapter - 1][part]) is not None:
                wanted[row, first : first + count] += found.up @ (found.down @ x[row].float())
            first += count
    return wanted


@DTYPES
@pytest.mark.parametrize("num_threads", [1, 3])
def test_each_row_gets_its_own_adapter(dtype: torch.dtype, num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    pairs = adapters(OUTPUTS)
    x, out = torch.randn(len(ROWS), WIDTH).to(dtype), torch.randn(len(ROWS), sum(OUTPUTS)).to(dtype)
    wanted = expected(pairs, x, out, ROWS)
    alone = [out[row : row + 1].clone() for row in range(len(ROWS))]
    plain = out.clone()
    layer = site(pairs, OUTPUTS)
    run(layer, x, out, ROWS)
    tolerance = 2e-3 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(out.float(), wanted, rtol=tolerance, atol=tolerance)
    for row, single in enumerate(alone):
        run(layer, x[row : row + 1], single, [ROWS[row]])
        assert torch.equal(single[0], out[row])
        assert ROWS[row] or torch.equal(plain[row], out[row])
    torch.set_num_threads(before)


@DTYPES
def test_gate_and_up_are_adapted_before_the_gate(dtype: torch.dtype) -> None:
    pairs = adapters([64, 64])
    x, gate, up = (torch.randn(len(ROWS), width).to(dtype) for width in (WIDTH, 64, 64))
    interleaved = torch.stack([gate.view(-1, 4, 16), up.view(-1, 4, 16)], dim=2).flatten(1).contiguous()
    gated = torch.full_like(gate, float("nan"))
    run(site(pairs, [64, 64]), x, interleaved, ROWS, gated)
    halves = [gate.float(), up.float()]
    for row, adapter in enumerate(ROWS):
        for part, half in enumerate(halves):
            if adapter and (found := pairs[adapter - 1][part]) is not None:
                half[row] += found.up @ (found.down @ x[row].float())
    gate, up = (half.to(dtype) for half in halves)
    tolerance = 2e-3 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(gated, F.silu(gate) * up, rtol=tolerance, atol=tolerance)
