"""The compiled kernel of every operation against its plain torch version."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inference_server.kernels import ops, reference
from inference_server.kernels.jit import object_cache
from inference_server.kernels.jit.openmp import find_start

TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
ROWS = [1, 2, 7, 32]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    tolerance = TOLERANCE[wanted.dtype]
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


class Cache:
    """Keys and values of sequences in shuffled blocks, and NaN where nothing is written."""

    def __init__(
        self, lengths: list[int], dtype: torch.dtype, *, kv_heads: int, width: int, value_width: int, block_size: int
    ) -> None:
        counts = [-(-length // block_size) for length in lengths]
        order = torch.randperm(sum(counts) + 3).tolist()
        self.keys = torch.full((len(order), block_size, kv_heads, width), float("nan"), dtype=dtype)
        self.values = torch.full((len(order), block_size, kv_heads, value_width), float("nan"), dtype=dtype)
        self.table = torch.full((len(lengths), max(counts) + 2), -1, dtype=torch.int32)
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        for row, length in enumerate(lengths):
            for index in range(counts[row]):
                block = order.pop()
                self.table[row, index] = block
                used = min(block_size, length - index * block_size)
                self.keys[block, :used] = torch.randn(used, kv_heads, width)
                self.values[block, :used] = torch.randn(used, kv_heads, value_width)


def make_cache(lengths: list[int], dtype: torch.dtype, *, kv_heads: int = 3, width: int = 64, **shape: int) -> Cache:
    full = {"value_width": width, "block_size": 32} | shape
    return Cache(lengths, dtype, kv_heads=kv_heads, width=width, **full)


def ragged(num_rows: int) -> list[int]:
    return [[300, 1, 33, 64, 15, 130, 257][row % 7] + row for row in range(num_rows)]


def assert_attends(query: Tensor, cache: Cache, *, scaling: float = 0.1, **limits: object) -> None:
    arguments = (query, cache.keys, cache.values, cache.table, cache.lengths, scaling)
    found = ops.paged_decode_attention(*arguments, **limits)
    assert not found.isnan().any()
    assert_close(found, reference.paged_decode_attention(*arguments, **limits))


def test_kernels_are_compiled_here() -> None:
    assert ops.available()


@DTYPES
@pytest.mark.parametrize(
    ("num_rows", "width"), [(1, 16), (2, 64), (7, 576), (32, 2048), (1, 2048), (2, 576), (7, 64), (32, 16)]
)
def test_rms_norm_is_that_of_torch(num_rows: int, width: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(num_rows, width).to(dtype) * 3, torch.randn(width).to(dtype)
    assert_close(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


@DTYPES
@pytest.mark.parametrize(("num_rows", "width"), [(1, 16), (2, 1536), (7, 16), (32, 1536), (1, 1536), (32, 16)])
def test_silu_mul_is_that_of_torch(num_rows: int, width: int, dtype: torch.dtype) -> None:
    gate_up = torch.randn(num_rows, 2 * width).to(dtype) * 8
    assert_close(ops.silu_mul(gate_up), reference.silu_mul(gate_up))


@DTYPES
def test_silu_mul_handles_huge_values_and_propagates_nan(dtype: torch.dtype) -> None:
    gate = torch.tensor([-3e38, -200.0, -90.0, 0.0, 90.0, 200.0, 3e38, float("nan")] * 2).to(dtype)
    found = ops.silu_mul(torch.cat([gate, torch.ones(16).to(dtype)])[None])
    wanted = reference.silu_mul(torch.cat([gate, torch.ones(16).to(dtype)])[None])
    torch.testing.assert_close(found, wanted, equal_nan=True, rtol=1e-2, atol=1e-6)


@DTYPES
@pytest.mark.parametrize(("num_rows", "width"), [(1, 16), (2, 64), (7, 80), (32, 128), (1, 80), (32, 64)])
@pytest.mark.parametrize("angles", [torch.float32, None], ids=["float32-angles", "own-angles"])
def test_rope_rotates_and_writes_like_torch(
    num_rows: int, width: int, dtype: torch.dtype, angles: torch.dtype | None
) -> None:
    heads, kv_heads, block_size = 9, 3, 16
    qkv = torch.randn(num_rows, (heads + 2 * kv_heads) * width).to(dtype)
    theta = torch.randn(num_rows, width)
    cos, sin = theta.cos().to(angles or dtype), theta.sin().to(angles or dtype)
    rows = torch.randperm(5 * block_size)[:num_rows]
    ours, plain = (torch.full((2, 5, block_size, kv_heads, width), 7.0, dtype=dtype) for _ in range(2))
    found = ops.rope_and_write(qkv, cos, sin, ours[0], ours[1], rows, heads, kv_heads)
    wanted = reference.rope_and_write(qkv, cos, sin, plain[0], plain[1], rows, heads, kv_heads)
    assert_close(found, wanted)
    assert_close(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])


@DTYPES
@pytest.mark.parametrize(
    ("num_rows", "group", "width"),
    [
        (1, 1, 16),
        (2, 3, 64),
        (7, 8, 128),
        (32, 3, 80),
        (1, 8, 64),
        (2, 1, 128),
        (7, 1, 80),
        (32, 8, 16),
        (7, 3, 16),
        (32, 1, 64),
    ],
)
def test_attention_is_that_of_torch(num_rows: int, group: int, width: int, dtype: torch.dtype) -> None:
    cache = make_cache(ragged(num_rows), dtype, kv_heads=2, width=width)
    assert_attends(torch.randn(num_rows, 2 * group, width).to(dtype), cache)


@DTYPES
@pytest.mark.parametrize("window", [1, 17, 64, 1000])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_attention_keeps_windows_and_soft_limits(window: int, softcap: float | None, dtype: torch.dtype) -> None:
    cache = make_cache(ragged(7), dtype)
    assert_attends(torch.randn(7, 9, 64).to(dtype), cache, scaling=0.5, sliding_window=window, softcap=softcap)


@DTYPES
@pytest.mark.parametrize("block_size", [1, 7, 16, 100])
def test_attention_takes_any_block_size_and_narrower_values(block_size: int, dtype: torch.dtype) -> None:
    cache = make_cache(ragged(7), dtype, width=64, value_width=32, block_size=block_size)
    assert_attends(torch.randn(7, 9, 64).to(dtype), cache)


@DTYPES
def test_attention_over_thousands_of_keys_is_that_of_torch(dtype: torch.dtype) -> None:
    cache = make_cache([4000, 1500], dtype)
    assert_attends(torch.randn(2, 9, 64).to(dtype), cache, scaling=0.5)


@pytest.mark.parametrize("num_rows", ROWS)
def test_float32_queries_take_keys_and_values_of_16_bits(num_rows: int) -> None:
    cache = make_cache(ragged(num_rows), torch.bfloat16)
    assert_attends(torch.randn(num_rows, 9, 64), cache)


def test_float32_keys_and_values_are_written_in_16_bits() -> None:
    qkv, cos, sin = torch.randn(3, 15 * 64), torch.randn(3, 64), torch.randn(3, 64)
    ours, plain = (torch.zeros(2, 5, 16, 3, 64, dtype=torch.bfloat16) for _ in range(2))
    rows = torch.tensor([70, 3, 20])
    ops.rope_and_write(qkv, cos, sin, ours[0], ours[1], rows, 9, 3)
    reference.rope_and_write(qkv, cos, sin, plain[0], plain[1], rows, 9, 3)
    assert_close(ours, plain)


@DTYPES
def test_rows_of_padding_are_zeros_and_read_nothing(dtype: torch.dtype) -> None:
    cache = make_cache([40, 0, 70, 0], dtype)
    query = torch.randn(4, 9, 64).to(dtype)
    query[1] = float("nan")
    found = ops.paged_decode_attention(query, cache.keys, cache.values, cache.table, cache.lengths, 0.1)
    assert torch.equal(found[1::2], torch.zeros(2, 9, 64, dtype=dtype))
    assert not found.isnan().any()


@DTYPES
def test_a_nan_within_a_sequence_affects_that_sequence_alone(dtype: torch.dtype) -> None:
    cache = make_cache([40, 40, 40], dtype)
    cache.keys[cache.table[0, 1], 3] = float("nan")
    cache.values[cache.table[1, 0], 5] = float("nan")
    query = torch.randn(3, 9, 64).to(dtype)
    found = ops.paged_decode_attention(query, cache.keys, cache.values, cache.table, cache.lengths, 0.1)
    assert found[:2].isnan().all() and not found[2].isnan().any()


@DTYPES
@pytest.mark.usefixtures("num_threads")
def test_a_sequence_has_the_same_bits_alone_and_among_others(dtype: torch.dtype) -> None:
    lengths = ragged(32)
    cache = make_cache(lengths, dtype)
    query = torch.randn(32, 9, 64).to(dtype)
    together = ops.paged_decode_attention(query, cache.keys, cache.values, cache.table, cache.lengths, 0.1)
    torch.set_num_threads(1)
    for row in range(32):
        one = slice(row, row + 1)
        alone = ops.paged_decode_attention(
            query[one], cache.keys, cache.values, cache.table[one, : -(-lengths[row] // 32)], cache.lengths[one], 0.1
        )
        assert torch.equal(alone[0], together[row])


@DTYPES
@pytest.mark.usefixtures("num_threads")
def test_rows_have_the_same_bits_alone_and_among_others(dtype: torch.dtype) -> None:
    x, weight = torch.randn(200, 576).to(dtype), torch.randn(576).to(dtype)
    normed, gated = ops.rms_norm(x, weight, 1e-5), ops.silu_mul(x)
    for row in range(0, 200, 17):
        one = slice(row, row + 1)
        assert torch.equal(ops.rms_norm(x[one], weight, 1e-5)[0], normed[row])
        assert torch.equal(ops.silu_mul(x[one])[0], gated[row])


def test_tensors_that_no_kernel_supports_are_computed_by_torch() -> None:
    x, weight = torch.randn(3, 50).double(), torch.randn(50).double()
    assert torch.equal(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    wide = torch.randn(64, 3).t()
    assert torch.equal(ops.silu_mul(wide), reference.silu_mul(wide))


@pytest.mark.skipif(sys.platform != "linux", reason="kernels take torch's threads on Linux")
def test_kernels_find_torchs_threads_among_other_copies_of_openmp() -> None:
    import sentencepiece  # noqa: F401 - brings a copy of its own

    start = find_start()
    assert start is not None
    assert Path(library_of(start)).is_relative_to(Path(torch.__file__).parent)


def library_of(function: object) -> str:
    """Return the path of the library that contains a C function."""
    address = ctypes.cast(function, ctypes.c_void_p).value
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            return line.split(maxsplit=5)[5]
    raise LookupError


def run_alone(script: str, cache: Path) -> str:
    """Standard output and error of a new process whose cache folder is under `cache`."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout + done.stderr


GATE = """
import sys, torch
from inference_server.kernels import ops
compiled = []
if sys.modules.get("llvmlite", sys) is not None:
    from inference_server.kernels.jit import object_cache
    compile_kernel = object_cache.compile_kernel
    object_cache.compile_kernel = lambda *arguments: compiled.append(arguments) or compile_kernel(*arguments)
x = torch.randn(300, 6000)
assert torch.allclose(ops.silu_mul(x), ops.reference.silu_mul(x), atol=1e-4)
print(ops.available(), len(compiled) > 0)
"""


def test_a_kernel_is_compiled_once_and_then_loaded(tmp_path: Path) -> None:
    assert run_alone(GATE, tmp_path).split() == ["True", "True"]
    assert run_alone(GATE, tmp_path).split() == ["True", "False"]
    (kept,) = tmp_path.glob("tailrace/kernels/*.o")
    kept.write_bytes(kept.read_bytes()[:-100])  # broken, it is compiled again
    assert run_alone(GATE, tmp_path).split() == ["True", "True"]


def test_a_change_in_any_source_of_the_kernels_invalidates_the_cache() -> None:
    folder = Path(reference.__file__).parent  # of the whole package
    assert object_cache.kernel_sources() == sorted(folder.rglob("*.py"))


def test_kernels_work_without_a_writable_cache_folder(tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    assert run_alone(GATE, tmp_path / "a file").split() == ["True", "True"]


def test_without_the_compiler_torch_computes_everything_and_logs_once(tmp_path: Path) -> None:
    without = "import sys; sys.modules['llvmlite'] = None\n"
    also = "ops.rms_norm(x, x[0], 1e-5); ops.rms_norm(x.bfloat16(), x[0].bfloat16(), 1e-5)\n"
    output = run_alone(without + GATE + also, tmp_path)
    assert output.count("compiled kernels are not available") == 1 and "False False" in output


def test_no_kernel_is_compiled_for_tensors_of_another_device(monkeypatch):
    monkeypatch.setattr(ops, "kernel", None)
    x = torch.zeros(2, 64, device="meta")
    ops.rms_norm(x, x[0], 1e-5)
    ops.silu_mul(x)
    cache = torch.zeros(3, 32, 1, 32, device="meta", dtype=torch.bfloat16)
    assert ops.paged_prefill_attention(x.view(2, 2, 32), cache, cache, torch.zeros(1, device="meta"), 0, 1.0) is None
    rows = torch.zeros(2, dtype=torch.int64, device="meta")
    ops.rope_and_write(torch.zeros(2, 96, device="meta"), x[:, :32], x[:, :32], cache, cache, rows, 1, 1)
