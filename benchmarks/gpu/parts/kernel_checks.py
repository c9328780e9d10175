"""Part 2, continued: compares every Triton kernel with torch's operations, in real models' shapes.

The torch operations are those of inference_server/gpu/reference.py.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.checks import Check, LeftOut, Mismatch, Note, Setup
from inference_server.gpu import ops, reference, triton_support


class Shape(NamedTuple):
    """Widths and options of one model's layers."""

    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    has_head_norms: bool = False
    sliding_window: int | None = None
    softcap: float | None = None

    @property
    def qkv(self) -> int:
        """Number of outputs of the fused query, key and value projections."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


SHAPES = {
    "Llama-2-7B": Shape(4096, 11008, 32, 32, 128),
    "Llama-3.1-8B": Shape(4096, 14336, 32, 8, 128),
    "Qwen3-0.6B": Shape(1024, 3072, 16, 8, 128, has_head_norms=True),
    "Gemma-2-9B": Shape(3584, 14336, 16, 8, 256, sliding_window=300, softcap=50.0),
    "SmolLM2-135M": Shape(576, 1536, 9, 3, 64),
    "Qwen3-32B": Shape(5120, 25600, 64, 8, 128, has_head_norms=True),
}
_TINY_SHAPE = Shape(128, 256, 4, 2, 32, has_head_norms=True)
# The largest allowed difference, divided by the largest expected value.
_TOLERANCE = {torch.float16: 0.004, torch.bfloat16: 0.02, torch.float32: 1e-4}
_BLOCK = 32
_KEYS = 700  # number of keys of the longest sequence

Pair = tuple[Tensor, Tensor]


class _Inputs:
    """Random inputs of one shape and dtype."""

    def __init__(self, setup: Setup, shape: Shape, dtype: torch.dtype, num_rows: int) -> None:
        self.setup, self.shape, self.dtype, self.num_rows = setup, shape, dtype, num_rows
        torch.manual_seed(num_rows)

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return normally distributed numbers."""
        numbers = torch.randn(shape, device=self.setup.device)
        return numbers.to(dtype or self.dtype)

    def integers(self, values: list[int]) -> Tensor:
        """Return int32 numbers on the device."""
        return torch.tensor(values, dtype=torch.int32, device=self.setup.device)

    def cache(self, num_sequences: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys, values and block tables of sequences of up to _KEYS tokens. The blocks are in random order."""
        blocks = -(-_KEYS // _BLOCK)
        shape = (num_sequences * blocks + 1, _BLOCK, self.shape.num_kv_heads, self.shape.head_dim)
        order = torch.randperm(num_sequences * blocks, device=self.setup.device) + 1
        return self.random(*shape), self.random(*shape), order.int().view(num_sequences, blocks)


def _rms_norm(inputs: _Inputs) -> Iterator[Pair]:
    x, weight = inputs.random(inputs.num_rows, inputs.shape.hidden), inputs.random(inputs.shape.hidden)
    yield ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5)


def _add_rms_norm(inputs: _Inputs) -> Iterator[Pair]:
    hidden, delta = (inputs.random(inputs.num_rows, inputs.shape.hidden) for _ in range(2))
    weight, copy = inputs.random(inputs.shape.hidden), hidden.clone()
    yield ops.add_rms_norm(hidden, delta, weight, 1e-5), reference.add_rms_norm(copy, delta, weight, 1e-5)
    yield hidden, copy


def _silu_mul(inputs: _Inputs) -> Iterator[Pair]:
    x = inputs.random(inputs.num_rows, 2 * inputs.shape.intermediate)
    yield ops.silu_mul(x), reference.silu_mul(x)


def _rope_and_write(inputs: _Inputs) -> Iterator[Pair]:
    shape = inputs.shape
    keys, values, _ = inputs.cache(2)
    copies = keys.clone(), values.clone()
    rows = torch.randperm(keys.shape[0] * _BLOCK, device=inputs.setup.device)[: inputs.num_rows]
    angles = inputs.random(inputs.num_rows, shape.head_dim // 2, dtype=torch.float32).repeat(1, 2)
    norms = tuple(inputs.random(shape.head_dim) if shape.has_head_norms else None for _ in range(2))
    qkv, sizes = inputs.random(inputs.num_rows, shape.qkv), (shape.num_heads, shape.num_kv_heads)
    arguments = (angles.cos(), angles.sin())
    result = ops.rope_and_write(qkv, *arguments, keys, values, rows, *sizes, norms[0], norms[1], 1e-6)
    yield result, reference.rope_and_write(qkv, *arguments, *copies, rows, *sizes, norms[0], norms[1], 1e-6)
    yield from zip((keys, values), copies, strict=True)


def _decode(inputs: _Inputs) -> Iterator[Pair]:
    shape, count = inputs.shape, inputs.num_rows
    keys, values, table = inputs.cache(count)
    lengths = inputs.integers([1 + (number * 211 + _KEYS - 1) % _KEYS for number in range(count)])
    query = inputs.random(count, shape.num_heads, shape.head_dim)
    arguments = (query, keys, values, table, lengths, shape.head_dim**-0.5, shape.sliding_window, shape.softcap)
    expected = reference.paged_decode_attention(*arguments, 0)
    for num_splits in (0, 1, 4):
        yield ops.paged_decode_attention(*arguments, num_splits), expected


def _prefill(inputs: _Inputs) -> Iterator[Pair]:
    shape = inputs.shape
    keys, values, table = inputs.cache(3)
    counts, lengths = [inputs.num_rows, 1, 70], [inputs.num_rows, 90, _KEYS]
    starts = inputs.integers([sum(counts[:index]) for index in range(4)])
    query = inputs.random(sum(counts), shape.num_heads, shape.head_dim)
    options = (shape.head_dim**-0.5, shape.sliding_window, shape.softcap)
    arguments = (query, keys, values, table, starts, inputs.integers(lengths), max(counts), *options)
    yield ops.paged_prefill_attention(*arguments), reference.paged_prefill_attention(*arguments)


def _int8_linear(inputs: _Inputs) -> Iterator[Pair]:
    shape = inputs.shape
    widths = ((shape.hidden, shape.qkv), (shape.hidden, 2 * shape.intermediate), (shape.intermediate, shape.hidden))
    for width, outputs in widths:
        codes = inputs.random(outputs, width, dtype=torch.float32).mul_(40).clamp_(-127, 127).to(torch.int8)
        scales = inputs.random(outputs, dtype=torch.float32).abs_().mul_(0.01)
        x = inputs.random(inputs.num_rows, width)
        yield ops.int8_linear(x, codes, scales), reference.int8_linear(x, codes, scales, None)


KERNELS: dict[str, Callable[[_Inputs], Iterator[Pair]]] = {
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "silu_mul": _silu_mul,
    "rope_and_write": _rope_and_write,
    "paged_decode_attention": _decode,
    "paged_prefill_attention": _prefill,
    "int8_linear": _int8_linear,
}


def _relative(pair: Pair) -> float:
    """Return the largest difference divided by the largest expected value; infinity if a result is not finite."""
    result, expected = (tensor.float() for tensor in pair)
    if not bool(result.isfinite().all()):
        return float("inf")
    return float((result - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def _dtypes(setup: Setup) -> list[torch.dtype]:
    if not setup.is_cuda or torch.cuda.get_device_capability(setup.device) < (8, 0):
        return [torch.float16]
    return [torch.float16, torch.bfloat16]


@torch.inference_mode()
def _check_shape(setup: Setup, note: Note, shape: Shape) -> None:
    """Record each kernel's largest relative difference from the reference. An exception in one does not stop the others.

    Raises:
        LeftOut: There is neither a GPU nor Triton's interpreter, or Triton cannot be used.
        Mismatch: A kernel exceeded its tolerance or raised an exception.
    """
    obstacle = triton_support.obstacle()
    if setup.is_cuda and obstacle is not None:
        raise LeftOut(obstacle)
    if not setup.is_cuda and not triton_support.interprets():
        raise LeftOut("needs a GPU, or Triton and its interpreter")
    failures = []
    for dtype in _dtypes(setup):
        for name, kernel in KERNELS.items():
            worst = _worst(kernel, setup, shape, dtype)
            note(f"{name} {str(dtype).removeprefix('torch.')}", worst)
            setup.wait()  # raises if a kernel caused a permanent device error
            if isinstance(worst, str) or not worst <= _TOLERANCE[dtype]:
                failures.append(name)
    if failures:
        raise Mismatch(f"wrong results: {', '.join(sorted(set(failures)))}")


def _worst(kernel: Callable[[_Inputs], Iterator[Pair]], setup: Setup, shape: Shape, dtype: torch.dtype) -> float | str:
    """Return a kernel's largest relative difference, or the first line of the exception that it raised."""
    worst = 0.0
    try:
        for num_rows in (1, 5, 64) if setup.is_cuda else (3,):
            worst = max([worst, *(_relative(pair) for pair in kernel(_Inputs(setup, shape, dtype, num_rows)))])
    except Exception as error:  # Triton's compiler raises its own exception classes
        return f"{type(error).__name__}: {(str(error).strip() or 'without a message').splitlines()[0]}"
    return worst


def _of(name: str) -> Callable[[Setup, Note], None]:
    def run(setup: Setup, note: Note) -> None:
        is_first = name == next(iter(SHAPES))
        if setup.is_tiny and not is_first:
            raise LeftOut("one tiny shape is enough")
        _check_shape(setup, note, _TINY_SHAPE if setup.is_tiny else SHAPES[name])

    return run


CHECKS = [Check(f"kernels of {name}", 45, _of(name)) for name in SHAPES]
