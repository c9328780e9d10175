"""The AMX kernels, on emulated tile registers, against float64 and against this CPU's vectors."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from inference_server.kernels.attention.prefill import make_prefill_attention
from inference_server.kernels.emit.module import Emit, Target, assembly
from inference_server.kernels.isa import choice
from inference_server.kernels.isa.amx.instruction_set import Amx
from inference_server.kernels.jit import arguments
from inference_server.kernels.linear.bf16 import make_bf16
from inference_server.kernels.linear.int4 import make_int4
from inference_server.kernels.linear.int4_widened import make_int4_widened
from inference_server.kernels.linear.int8 import make_int8
from inference_server.kernels.linear.layer import OutputFormat
from tests.inference_server.kernels.test_prefill_kernel import Cache, queries
from tests.support.kernels import compiled_kernels
from tests.support.kernels.compiled_kernels import aligned
from tests.support.kernels.emulated_amx import EmulatedTiles, emulated_amx

pytestmark = pytest.mark.skipif(not choice.available(), reason="kernels cannot be compiled on this CPU")

WIDTH, OUTPUTS = 192, 64
ROWS = [1, 2, 3, 5, 8, 9, 16, 17, 32, 33, 45]
EMITS: dict[str, Emit] = {
    "bf16": make_bf16(OutputFormat(is_bf16=True)),
    "int8": make_int8(False),
    "int4": make_int4(False),
    "int4-widened": make_int4_widened(False),
    "prefill": make_prefill_attention(True),
}


_all_tiles: list[EmulatedTiles] = []


@cache
def on_tiles(name: str) -> tuple[Any, EmulatedTiles]:
    base = choice.available()[0]
    isa, tiles = emulated_amx(base)
    _all_tiles.append(tiles)
    return compiled_kernels.load(EMITS[name], isa, choice.target(base)), tiles


@cache
def on_vectors(name: str) -> Any:
    return compiled_kernels.load(EMITS[name], choice.available()[0])


@pytest.fixture(autouse=True)
def no_faults():
    yield
    assert not [fault for tiles in _all_tiles for fault in tiles.faults]


@dataclass
class Layer:
    """Weights in float64, and packed for tiles and for this CPU's vectors."""

    weight: Tensor
    packed: Tensor
    packed_for_vectors: Tensor
    scales: Tensor | None = None

    def multiply(self, run: Any, packed: Tensor, x: Tensor) -> Tensor:
        out = torch.full((len(x), OUTPUTS), float("nan"), dtype=x.dtype)
        bias = torch.linspace(-1, 1, OUTPUTS)
        padded_rows = -(-len(x) // 8) * 8
        workspace = aligned(torch.zeros(padded_rows * (2 * WIDTH + 4 + WIDTH // 32 * 4), dtype=torch.uint8))
        scales = 0 if self.scales is None else self.scales.data_ptr()
        addresses = packed.data_ptr(), scales, x.data_ptr(), out.data_ptr(), bias.data_ptr()
        run(arguments.linear(*addresses, len(x), WIDTH, OUTPUTS, workspace.data_ptr()))
        return out

    def wanted(self, x: Tensor) -> Tensor:
        return x.double() @ self.weight.T + torch.linspace(-1, 1, OUTPUTS).double()


@cache
def bf16_layer() -> Layer:
    weight = torch.randn(OUTPUTS, WIDTH).bfloat16()
    packed = aligned(weight.view(OUTPUTS // 16, 16, WIDTH // 2, 2).transpose(1, 2).contiguous())
    return Layer(weight.double(), packed, packed)


@cache
def int8_layer() -> Layer:
    codes, scales = torch.randint(-127, 128, (OUTPUTS, WIDTH), dtype=torch.int8), torch.rand(OUTPUTS) / 50
    signed = aligned(codes.view(OUTPUTS // 16, 16, WIDTH // 4, 4).transpose(1, 2).contiguous())
    is_unsigned = choice.available()[0].unsigned_codes
    return Layer(codes * scales.double()[:, None], signed, aligned(signed ^ -128) if is_unsigned else signed, scales)


@cache
def int4_layer() -> Layer:
    panels, groups = OUTPUTS // 16, WIDTH // 32
    codes = torch.randint(0, 16, (OUTPUTS, WIDTH), dtype=torch.uint8)
    factors = torch.stack([torch.rand(OUTPUTS, groups) / 50, torch.randn(OUTPUTS, groups) / 10]).half()
    halves = codes.view(panels, 16, groups, 2, 16).permute(3, 0, 2, 1, 4).reshape(2, panels, groups, 16, 4, 4)
    nibbles = (halves[0] | (halves[1] << 4)).transpose(2, 3).reshape(panels, groups, 256)
    scales = factors.view(2, panels, 16, groups).permute(1, 3, 0, 2).contiguous().view(torch.uint8)
    packed = aligned(torch.cat([scales.view(panels, groups, 64), nibbles], 2))
    scale, minimum = factors.double()[..., None]
    return Layer((codes.view(OUTPUTS, groups, 32) * scale + minimum).view(OUTPUTS, WIDTH), packed, packed)


def activations(num_rows: int) -> Tensor:
    torch.manual_seed(num_rows)
    return torch.randn(num_rows, WIDTH)


def assert_close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))


@pytest.mark.parametrize("num_rows", ROWS)
def test_bfloat16_weights(num_rows: int) -> None:
    layer, run, tiles = bf16_layer(), *on_tiles("bf16")
    x = torch.cat([activations(num_rows), torch.zeros(32, WIDTH)]).bfloat16()[:num_rows]
    end = x.data_ptr() + x.nbytes
    tiles.forbidden = range(end, end + 32 * WIDTH * 2)
    assert_close(layer.multiply(run, layer.packed, x), layer.wanted(x), 0.004)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_integer_weights_have_the_bits_of_the_vector_kernels(name: str, num_rows: int) -> None:
    layer, x = int8_layer() if name == "int8" else int4_layer(), activations(num_rows)
    found = layer.multiply(on_tiles(name)[0], layer.packed, x)
    assert_close(found, layer.wanted(x), 3e-4)
    assert torch.equal(found, layer.multiply(on_vectors(name), layer.packed_for_vectors, x))


@pytest.mark.parametrize("num_rows", ROWS)
def test_int4_weights_widened_to_bfloat16(num_rows: int) -> None:
    layer, x = int4_layer(), activations(num_rows)
    assert_close(layer.multiply(on_tiles("int4-widened")[0], layer.packed, x), layer.wanted(x), 0.01)


@pytest.mark.parametrize("num_rows", [4, 5])
def test_int4_weights_use_tiles_for_more_than_four_rows(num_rows: int) -> None:
    run, tiles = on_tiles("int4")
    tiles.counts.clear()
    int4_layer().multiply(run, int4_layer().packed, activations(num_rows))
    assert bool(tiles.counts["tdpbssd"]) == (num_rows > 4)


def test_int8_weights_are_loaded_once_for_sixteen_rows() -> None:
    run, tiles = on_tiles("int8")
    tiles.counts.clear()
    int8_layer().multiply(run, int8_layer().packed, activations(16))
    steps = OUTPUTS // 32 * WIDTH // 64
    assert (tiles.counts["tileloadd64"], tiles.counts["tdpbssd"]) == (4 * steps, 4 * steps)


@pytest.mark.parametrize(
    ("name", "instruction", "count"),
    [
        ("bf16", "tdpbf16ps", 4 + 4 + 4 + 2),  # the first 32 rows, further 32 rows, 17 to 31 rows, up to 16 rows
        ("int8", "tdpbssd", 4 + 2),  # 9 to 16 rows, up to 8 rows
        ("int4", "tdpbssd", 2 + 2),  # 5 to 8 rows, up to 4 rows
        ("prefill", "tdpbf16ps", 4 + 4),  # keys times queries, values times weights
    ],
)
def test_a_kernel_for_sapphire_rapids_multiplies_tiles_in_each_of_its_loops(
    name: str, instruction: str, count: int
) -> None:
    text = assembly(EMITS[name], Amx(), Target("x86_64-unknown-linux-gnu", Amx.llvm_cpu, ""))
    assert text.count(f"\t{instruction}\t") == count


@pytest.mark.parametrize("width", [32, 64])
def test_prompts_attend_to_themselves_and_earlier_tokens(width: int) -> None:
    starts, lengths = [0, 0, 100], [1, 33, 80]
    cache_of_prompts = Cache([1, 33, 180], kv_heads=1, width=width)
    query = queries(sum(lengths), heads=2, width=width)
    found = cache_of_prompts.attend(on_tiles("prefill")[0], query, starts, lengths)
    assert_close(found, cache_of_prompts.wanted(query, starts, lengths), 0.01)
