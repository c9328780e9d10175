"""The parts that decode and prefill attention share: the loop over tiles of paged keys, and the properties of a device.

The loop computes an online softmax in float32 with base-2 exponentials. A row's state is `top`, its largest score so
far, `total`, the sum of its weights, and `acc`, the weighted sum of values. Both sums are relative to `top`.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped"
import functools
import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference_server.gpu.kernels.compile_case import SHARED_MEMORY_BYTES

# A score lower than every other. Minus infinity would result in NaN where all keys of a tile are masked (infinity
# minus infinity).
HIDDEN = tl.constexpr(-1e30)
LOG2_E = tl.constexpr(math.log2(math.e))
# Narrower heads are padded to this width, the smallest that tensor cores multiply.
MIN_WIDTH = 16
# Numbers of pipeline stages that keep one or two tiles of keys, and as many of values, in shared memory. A tile's block
# numbers are loaded in earlier stages than its keys.
ONE_BUFFER, TWO_BUFFERS = 3, 5


@triton.jit
def attend(
    acc,
    top,
    total,
    query,
    keys,
    values,
    table,
    head,
    begin,
    end,
    positions,
    scale,
    limit,
    window,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    LIMITED: tl.constexpr,
):
    """Add the keys `begin` to `end` of one sequence and KV head to the state (acc, top, total) of all rows.

    Args:
        acc: (rows, WIDTH) float32.
        top: (rows,) float32.
        total: (rows,) float32.
        query: (rows, WIDTH), zero beyond DIM.
        keys: Pointer to (blocks, PAGE, KV_HEADS, DIM).
        values: The same for the values.
        table: Pointer to the sequence's block numbers.
        head: The KV head.
        begin: Position of the first key.
        end: Position after the last key.
        positions: (rows,) the position of the last key that each row attends to. Read if MASKED.
        scale: Factor that converts a product of query and key to a base-2 exponent. If LIMITED, it multiplies the
            result of tanh instead.
        limit: Factor that converts that product to the base-2 exponent in the formula of tanh. Read if LIMITED.
        window: Number of keys that each row attends to, up to its position. Read if MASKED and WINDOWED.
        KV_HEADS: Number of KV heads.
        DIM: Width of a head, a multiple of 8.
        WIDTH: DIM, or the next power of two.
        PAGE: Number of tokens of a block of the cache.
        TILE: Number of keys of a tile.
        MASKED: False if all rows attend to all keys and the number of keys is a multiple of TILE.
        WINDOWED: True if `window` limits the keys of a row.
        LIMITED: True for a softcap.
    """
    offsets = tl.arange(0, TILE)
    columns = tl.arange(0, WIDTH)
    for start in range(begin, end, TILE):
        tokens = start + offsets
        if MASKED:
            pages = tl.load(table + tokens // PAGE, mask=tokens < end, other=0)
        else:
            pages = tl.load(table + tokens // PAGE)
        rows = (pages.to(tl.int64) * PAGE + tokens % PAGE) * KV_HEADS + head
        places = rows[:, None] * DIM + columns[None, :]
        # Cached values beyond a sequence's end may be NaN, so they are never loaded.
        if WIDTH != DIM:
            inside = (tokens < end)[:, None] & (columns < DIM)[None, :]
            key = tl.load(keys + places, mask=inside, other=0.0)
            value = tl.load(values + places, mask=inside, other=0.0)
        elif MASKED:
            key = tl.load(keys + places, mask=(tokens < end)[:, None], other=0.0)
            value = tl.load(values + places, mask=(tokens < end)[:, None], other=0.0)
        else:
            key = tl.load(keys + places)
            value = tl.load(values + places)
        scores = tl.dot(query, tl.trans(key))
        if LIMITED:
            # tanh(x) = 1 - 2 / (1 + exp(2 x)), which is also correct if the exponential overflows to infinity.
            scores = 1.0 - 2.0 / (1.0 + tl.exp2(scores * limit))
        if MASKED:
            visible = tokens[None, :] <= positions[:, None]
            if WINDOWED:
                visible = visible & (tokens[None, :] > positions[:, None] - window)
            scores = tl.where(visible, scores, HIDDEN)
        higher = tl.maximum(top, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(value.dtype), value, acc * shrink[:, None])
        top = higher
    return acc, top, total


@triton.jit
def initial_state(sinks, heads, begins, ROWS: tl.constexpr, SINKS: tl.constexpr):
    """Return `top` and `total` of rows before their first key.

    A sink is a score without a value. The rows of `begins` start as if they had already processed their sink.

    Args:
        sinks: Pointer to the sinks of all query heads, float32. Read if SINKS.
        heads: (ROWS,) the query head of each row.
        begins: (ROWS,) False for rows without a query head, and for rows whose sink another program processes. Read if
            SINKS.
        ROWS: The number of rows.
        SINKS: True if there are sinks.
    """
    top = tl.full((ROWS,), HIDDEN, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if SINKS:
        top = tl.where(begins, tl.load(sinks + heads, mask=begins, other=0.0) * LOG2_E, HIDDEN)
        total = tl.where(begins, 1.0, 0.0)
    return top, total


@dataclass(frozen=True, slots=True)
class Device:
    """The properties of a GPU that determine a kernel's constants."""

    capability: int  # compute capability, times 10
    shared_memory: int  # bytes that one program may use
    num_multiprocessors: int

    @property
    def has_tensor_cores(self) -> bool:
        """True if Triton uses this GPU's tensor cores. On a T4 (7.5), Triton uses float32 arithmetic instead."""
        return self.capability >= 80

    @property
    def is_large(self) -> bool:
        """True for data-centre GPUs with 160 KB of shared memory or more; the other GPUs from 8.0 have about 100 KB."""
        return self.shared_memory >= 160 << 10


def device_of(tensor: Tensor) -> Device:
    """Return the properties of the tensor's GPU. For a CPU tensor (Triton's interpreter), returns those of an H200."""
    if tensor.device.type == "cpu":
        return Device(90, SHARED_MEMORY_BYTES[90], 132)
    return _device(tensor.device.index if tensor.device.index is not None else torch.cuda.current_device())


@functools.cache
def _device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    capability = properties.major * 10 + properties.minor
    # The smallest of all listed devices, for a build of torch without this property.
    shared_memory = getattr(properties, "shared_memory_per_block_optin", SHARED_MEMORY_BYTES[75])
    return Device(capability, shared_memory, properties.multi_processor_count)


def exponent_factors(scaling: float, softcap: float | None) -> tuple[float, float]:
    """Return `scale` and `limit` of `attend` for a layer's constants."""
    if softcap is None:
        return scaling * math.log2(math.e), 0.0
    return softcap * math.log2(math.e), 2 * math.log2(math.e) * scaling / softcap
