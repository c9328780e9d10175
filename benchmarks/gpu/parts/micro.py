"""Part 3: measures the kernels of one layer and of the output head, in the shapes of the setup's model.

The bandwidth of kernels that are bound by memory is compared with that of a copy.

Successive calls read different copies of the weights, together more than the GPU's L2 cache holds. In a model, a
layer's weights are not in this cache either when a step reads them.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu import models, timing
from benchmarks.gpu.checks import Check, Note, Setup
from benchmarks.gpu.timing import Call
from inference_server.gpu import ops

_BLOCK = 32
_SPLITS = (1, 2, 4, 8, 16)


def _widths(setup: Setup) -> dict[str, tuple[int, int]]:
    """Return (in_features, out_features) of the products of a layer and of the output head."""
    shapes = models.SHAPES[setup.shapes]
    hidden, intermediate = int(shapes["hidden_size"]), int(shapes["intermediate_size"])
    heads, kv_heads, head_dim = _heads(setup)
    return {
        "qkv": (hidden, (heads + 2 * kv_heads) * head_dim),
        "output": (heads * head_dim, hidden),
        "gate_up": (hidden, 2 * intermediate),
        "down": (intermediate, hidden),
        "head": (hidden, int(shapes["vocab_size"])),
    }


def _heads(setup: Setup) -> tuple[int, int, int]:
    shapes = models.SHAPES[setup.shapes]
    heads = int(shapes["num_attention_heads"])
    return heads, int(shapes["num_key_value_heads"]), int(shapes.get("head_dim", shapes["hidden_size"] // heads))


def _num_copies(setup: Setup, num_bytes: int) -> int:
    """Return the number of copies of `num_bytes` that together exceed three times the L2 cache; at most 64."""
    return min(64, 3 * timing.l2_bytes(setup) // num_bytes + 1)


class _Bandwidth:
    """Converts durations to bandwidths, and compares them with that of a copy.

    Attributes:
        copied: Bytes per second of a copy.
    """

    def __init__(self, setup: Setup, note: Note) -> None:
        self.copied = timing.copy_bandwidth(setup)
        note("copy_gb_per_s", round(self.copied / 1e9, 1))

    def figures(self, seconds: float, num_bytes: int) -> dict[str, float]:
        """Return microseconds, GB/s, and the share of the copy's bandwidth."""
        rate = num_bytes / seconds
        return {"us": round(seconds * 1e6, 2), "gb_per_s": round(rate / 1e9, 1), "share": round(rate / self.copied, 3)}


def _rows(setup: Setup) -> tuple[int, ...]:
    return (1, 4) if setup.is_tiny else (1, 64, 16)


@torch.inference_mode()
def _products(setup: Setup, note: Note, make: Callable[[Setup, Tensor], Callable[[Tensor], Tensor]], size: int) -> None:
    """Measure one implementation of the product in all shapes.

    Args:
        setup: The device.
        note: Records the figures.
        make: Given a weight (out_features, in_features), returns the function that multiplies by it.
        size: Bytes of one element of the weight.
    """
    bandwidth = _Bandwidth(setup, note)
    for name, (width, outputs) in _widths(setup).items():
        num_bytes = width * outputs * size
        weight = torch.randn(outputs, width, device=setup.device, dtype=setup.dtype) * 0.02
        products = [make(setup, weight.clone()) for _ in range(_num_copies(setup, num_bytes))]
        for num_rows in _rows(setup):
            x = torch.randn(num_rows, width, device=setup.device, dtype=setup.dtype)
            calls: list[Call] = [partial(product, x) for product in products]
            activations = num_rows * (width + outputs) * 2
            seconds = timing.seconds_per_call(setup, calls)
            note(f"{name}, {num_rows} rows", bandwidth.figures(seconds, num_bytes + activations))
        del products, weight


def _cublas(setup: Setup, note: Note) -> None:
    """Measure cuBLAS's 16-bit product."""
    _products(setup, note, lambda setup, weight: lambda x: F.linear(x, weight), size=2)


def _ours_int8(setup: Setup, note: Note) -> None:
    """Measure Tailrace's int8 product."""

    def make(setup: Setup, weight: Tensor) -> Callable[[Tensor], Tensor]:
        scales = weight.abs().amax(dim=1).float() / 127.0
        codes = (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
        return lambda x: ops.int8_linear(x, codes, scales)

    _products(setup, note, make, size=1)


def _bitsandbytes(setup: Setup, note: Note) -> None:
    """Measure bitsandbytes' int8 product, which quantizes the activations first."""
    _products(setup, note, lambda setup, weight: models.int8_linear(weight), size=1)


@torch.inference_mode()
def _decode_attention(setup: Setup, note: Note) -> None:
    """Measure paged decode attention with fixed numbers of splits. With 0, Tailrace selects the number."""
    bandwidth = _Bandwidth(setup, note)
    heads, kv_heads, head_dim = _heads(setup)
    num_keys, batches = (64, (1, 2)) if setup.is_tiny else (2048, (1, 16, 64))
    for kv in sorted({kv_heads, max(1, kv_heads // 4)}, reverse=True):  # also with grouped queries, as in Llama 3
        for count in batches:
            num_bytes = 2 * count * num_keys * kv * head_dim * 2
            copies = [_cache(setup, count, num_keys, kv, head_dim) for _ in range(_num_copies(setup, num_bytes))]
            query = torch.randn(count, heads, head_dim, device=setup.device, dtype=setup.dtype)
            lengths = torch.full((count,), num_keys, dtype=torch.int32, device=setup.device)
            for num_splits in (0, *_SPLITS):
                calls: list[Call] = [
                    partial(ops.paged_decode_attention, query, *cache, lengths, head_dim**-0.5, num_splits=num_splits)
                    for cache in copies
                ]
                figures = bandwidth.figures(timing.seconds_per_call(setup, calls), num_bytes)
                note(f"{kv} key heads, batch {count}, {num_keys} keys, {num_splits} splits", figures)
            del copies


def _cache(setup: Setup, count: int, num_keys: int, kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys, values and block tables of `count` sequences. The blocks are in random order."""
    blocks = num_keys // _BLOCK
    shape = (count * blocks + 1, _BLOCK, kv_heads, head_dim)
    keys, values = (torch.randn(shape, device=setup.device, dtype=setup.dtype) for _ in range(2))
    order = torch.randperm(count * blocks, device=setup.device) + 1
    return keys, values, order.int().view(count, blocks)


@torch.inference_mode()
def _prefill_attention(setup: Setup, note: Note) -> None:
    """Measure paged prefill attention, and torch's attention on contiguous keys, without cuDNN."""
    if setup.is_cuda:
        torch.backends.cuda.enable_cudnn_sdp(False)
    heads, kv_heads, head_dim = _heads(setup)
    for length in (64,) if setup.is_tiny else (512, 2048):
        keys, values, table = _cache(setup, 1, length, kv_heads, head_dim)
        query = torch.randn(length, heads, head_dim, device=setup.device, dtype=setup.dtype)
        ends = torch.tensor([0, length], dtype=torch.int32, device=setup.device)
        key, value = (cached[1:].flatten(0, 1).transpose(0, 1)[None] for cached in (keys, values))
        operations = 2 * heads * head_dim * length * length  # two products, of which the causal mask keeps half
        arguments = (query, keys, values, table, ends, ends[1:], length, head_dim**-0.5)
        ours = _seconds(setup, partial(ops.paged_prefill_attention, *arguments))
        contiguous = (query.transpose(0, 1)[None], key, value)
        attention = partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=heads != kv_heads)
        theirs = _seconds(setup, partial(attention, *contiguous))
        for name, seconds in (("tailrace", ours), ("torch", theirs)):
            rate = round(operations / seconds / 1e12, 1)
            note(f"{length} tokens, {name}", {"us": round(seconds * 1e6, 1), "tflop_per_s": rate})


def _seconds(setup: Setup, call: Call) -> float:
    """Return the shortest of five durations of a call, without a CUDA graph."""
    call()
    return min(timing.timed(setup, call) for _ in range(5))


@torch.inference_mode()
def _small_kernels(setup: Setup, note: Note) -> None:
    """Measure the kernels between the products."""
    shapes, (heads, kv_heads, head_dim) = models.SHAPES[setup.shapes], _heads(setup)
    hidden, intermediate = int(shapes["hidden_size"]), int(shapes["intermediate_size"])
    for count in (1, 64):

        def random(*shape: int, count: int = count) -> Tensor:
            return torch.randn(count, *shape, device=setup.device, dtype=setup.dtype)

        x, weight, angles = random(hidden), random(hidden)[0], torch.zeros(count, head_dim, device=setup.device)
        keys, values, _ = _cache(setup, 1, 64 * _BLOCK, kv_heads, head_dim)
        rotation = (angles, angles, keys, values, torch.arange(count, device=setup.device), heads, kv_heads)
        calls: dict[str, Call] = {
            "rms_norm": partial(ops.rms_norm, x, weight, 1e-5),
            "add_rms_norm": partial(ops.add_rms_norm, x, random(hidden), weight, 1e-5),
            "silu_mul": partial(ops.silu_mul, random(2 * intermediate)),
            "rope_and_write": partial(ops.rope_and_write, random((heads + 2 * kv_heads) * head_dim), *rotation),
        }
        for name, call in calls.items():
            note(f"{name}, {count} rows, us", round(timing.seconds_per_call(setup, [call] * 20) * 1e6, 2))


CHECKS = [
    Check("products, cuBLAS 16-bit", 20, _cublas),
    Check("products, Tailrace int8", 45, _ours_int8),
    Check("decode attention", 30, _decode_attention),
    Check("products, bitsandbytes int8", 20, _bitsandbytes),
    Check("small kernels", 20, _small_kernels),
    Check("prefill attention", 20, _prefill_attention),
]
