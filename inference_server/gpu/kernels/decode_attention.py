"""Attention of one new token for each sequence, on keys and values in the paged cache.

Reading the cache takes most of the time. So a program reads each key and value of one KV head once, for all query heads
of its group, which are the rows of the tensor cores' products. Long sequences are split between programs, and a second
kernel joins their results. With a fixed number of splits, a sequence's result does not depend on the other sequences of
the batch.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped"
import torch
import triton
import triton.language as tl
from torch import Tensor

from inference_server.gpu.kernels.attention_cases import BLOCK_SIZE, DETAILED, JOINED, LIMITED, WITH_SINKS, targets
from inference_server.gpu.kernels.attention_tiles import (
    HIDDEN,
    MIN_WIDTH,
    ONE_BUFFER,
    TWO_BUFFERS,
    Device,
    attend,
    device_of,
    exponent_factors,
    initial_state,
)
from inference_server.gpu.kernels.compile_case import CompileCase

# Smallest number of rows that tensor cores multiply.
MIN_ROWS = 16
MAX_SPLITS = 32
# Joining a split of fewer keys takes longer than reading it.
MIN_KEYS_PER_SPLIT = 128


@triton.jit(
    do_not_specialize=["table_stride", "lengths_stride", "window"],
    do_not_specialize_on_alignment=["table", "lengths"],
)
def decode_kernel(
    query,
    keys,
    values,
    table,
    lengths,
    sinks,
    out,
    partial_sums,
    partial_tops,
    partial_totals,
    table_stride,
    lengths_stride,
    scale,
    limit,
    window,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
    LIMITED: tl.constexpr,
    SINKS: tl.constexpr,
):
    """Compute program (sequence, KV head, split): the heads of a group over the split's share of the visible keys.

    The shares are multiples of TILE, so the last splits of a short sequence are empty. They write only a total of 0.
    The first split also processes the sinks.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths + sequence * lengths_stride)
    first = tl.maximum(length - window, 0)
    share = tl.cdiv(tl.cdiv(length - first, SPLITS), TILE) * TILE
    begin = first + split * share
    end = tl.minimum(begin + share, length)

    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    places = (sequence * HEADS + head * GROUP + rows).to(tl.int64)
    inside = (rows < GROUP)[:, None] & (columns < DIM)[None, :]
    queries = tl.load(query + places[:, None] * DIM + columns[None, :], mask=inside, other=0.0)
    top, total = initial_state(sinks, head * GROUP + rows, (rows < GROUP) & (split == 0), ROWS, SINKS)
    acc, top, total = attend(
        tl.zeros((ROWS, WIDTH), tl.float32),
        top,
        total,
        queries,
        keys,
        values,
        table + sequence.to(tl.int64) * table_stride,
        head,
        begin,
        end,
        tl.zeros((ROWS,), tl.int32) + (end - 1),
        scale,
        limit,
        window,
        KV_HEADS,
        DIM,
        WIDTH,
        PAGE,
        TILE,
        True,
        False,
        LIMITED,
    )
    if SPLITS == 1:
        # A sequence of length 0 has a total of 0.
        result = acc / tl.where(total > 0.0, total, 1.0)[:, None]
        tl.store(out + places[:, None] * DIM + columns[None, :], result.to(out.dtype.element_ty), mask=inside)
    else:
        parts = places * SPLITS + split
        tl.store(partial_totals + parts, total, mask=rows < GROUP)
        if begin < end or (SINKS and split == 0):
            tl.store(partial_tops + parts, top, mask=rows < GROUP)
            tl.store(partial_sums + parts[:, None] * DIM + columns[None, :], acc, mask=inside)


@triton.jit
def join_kernel(
    partial_sums,
    partial_tops,
    partial_totals,
    out,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Join the splits of one query head of one sequence. PARTS is SPLITS, or the next power of two."""
    row = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, PARTS)
    columns = tl.arange(0, WIDTH)
    parts = row * SPLITS + splits
    totals = tl.load(partial_totals + parts, mask=splits < SPLITS, other=0.0)
    # Where the total is 0, the split is empty and the rest of its memory is undefined.
    filled = totals > 0.0
    tops = tl.load(partial_tops + parts, mask=filled, other=HIDDEN)
    inside = filled[:, None] & (columns < DIM)[None, :]
    sums = tl.load(partial_sums + parts[:, None] * DIM + columns[None, :], mask=inside, other=0.0)
    weights = tl.exp2(tops - tl.max(tops, 0))
    total = tl.sum(totals * weights, 0)
    result = tl.sum(sums * weights[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    tl.store(out + row * DIM + columns, result.to(out.dtype.element_ty), mask=columns < DIM)


def paged_decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    lengths: Tensor,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    num_splits: int,
    sinks: Tensor | None = None,
) -> Tensor:
    """Launch the kernels behind ops.paged_decode_attention, which describes arguments and result."""
    num_sequences, num_heads, head_dim = query.shape
    page, num_kv_heads = keys.shape[1:3]
    out = torch.empty_like(query)
    if num_sequences == 0:
        return out
    device = device_of(query)
    splits = num_splits or chosen_splits(num_sequences, num_kv_heads, table.shape[1] * page, device.num_multiprocessors)
    constants, num_warps, num_stages = launch_constants(num_heads, num_kv_heads, head_dim, page, device)
    shape = (num_sequences * num_heads, splits)
    if splits == 1:
        sums = tops = totals = out
    else:
        sums, tops, totals = (query.new_empty(size, dtype=torch.float32) for size in ((*shape, head_dim), shape, shape))
    scale, limit = exponent_factors(scaling, softcap)
    decode_kernel[(num_sequences, num_kv_heads, splits)](
        query,
        keys,
        values,
        table,
        lengths,
        query if sinks is None else sinks,
        out,
        sums,
        tops,
        totals,
        table.stride(0),
        lengths.stride(0),
        scale,
        limit,
        2**30 if sliding_window is None else sliding_window,
        **constants,
        SPLITS=splits,
        LIMITED=softcap is not None,
        SINKS=sinks is not None,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    if splits > 1:
        join_kernel[(shape[0],)](
            sums, tops, totals, out, **join_constants(head_dim, splits), num_warps=4, num_stages=ONE_BUFFER
        )
    return out


def chosen_splits(num_sequences: int, num_kv_heads: int, max_keys: int, num_multiprocessors: int) -> int:
    """Return the largest number of splits, a power of two, with at most two programs for each multiprocessor.

    It is 1 to MAX_SPLITS. In the longest possible sequence, a split has at least MIN_KEYS_PER_SPLIT keys. The number
    depends on shapes only, never on the lengths, so it is valid for every replay of a recorded CUDA graph.

    Args:
        num_sequences: Number of rows of the batch, padding included.
        num_kv_heads: Number of KV heads.
        max_keys: Number of keys in the blocks of one row of the block table.
        num_multiprocessors: The GPU's number of multiprocessors.
    """
    wanted = 2 * num_multiprocessors // (num_sequences * num_kv_heads)
    most = min(MAX_SPLITS, max_keys // MIN_KEYS_PER_SPLIT)
    return 1 << max(0, min(wanted, most).bit_length() - 1)


def launch_constants(
    num_heads: int, num_kv_heads: int, head_dim: int, page: int, device: Device
) -> tuple[dict[str, int], int, int]:
    """Return decode_kernel's constants and its numbers of warps and stages. SPLITS, LIMITED and SINKS are not included.

    At least two programs fit on a multiprocessor, each with two tiles of keys and values in shared memory: one is
    loaded while the other is used.
    """
    group = triton.next_power_of_2(num_heads // num_kv_heads)
    width = max(MIN_WIDTH, triton.next_power_of_2(head_dim))
    rows = max(MIN_ROWS, group)
    if not device.has_tensor_cores:
        rows = group
        tile = 32 if rows <= 4 and width <= 128 else 16
    else:
        tile = (64 if width <= 128 else 32) // (1 if device.is_large else 2)
    constants = {
        "HEADS": num_heads,
        "KV_HEADS": num_kv_heads,
        "DIM": head_dim,
        "PAGE": page,
        "ROWS": rows,
        "WIDTH": width,
        "TILE": tile,
    }
    return constants, 4 if rows < 64 else 8, TWO_BUFFERS


def join_constants(head_dim: int, splits: int) -> dict[str, int]:
    """Return the constants of join_kernel."""
    width, parts = triton.next_power_of_2(head_dim), triton.next_power_of_2(splits)
    return {"DIM": head_dim, "WIDTH": width, "SPLITS": splits, "PARTS": parts}


def compile_cases() -> list[CompileCase]:
    """Return the specialisations of both kernels for the models' shapes, with 8 splits.

    One shape is also compiled with 1 split.
    """
    cases = []
    for target in targets():
        shape, capabilities = target.shape, (target.device.capability,)
        constants, num_warps, num_stages = launch_constants(*shape[1:], BLOCK_SIZE, target.device)
        tensors = dict.fromkeys(("query", "keys", "values", "out"), f"*{target.dtype}")
        has_sinks = shape.name == WITH_SINKS
        sinks = {"sinks": "*fp32" if has_sinks else tensors["query"]}
        partial = dict.fromkeys(("partial_sums", "partial_tops", "partial_totals"), "*fp32")
        pages = {"table": "*i32", "lengths": "*i32", "table_stride": "i32", "lengths_stride": "i32", "window": "i32"}
        signature = {**tensors, **partial, **pages, **sinks, "scale": "fp32", "limit": "fp32"}
        for splits in (1, 8) if shape.name == DETAILED else (8,):
            cases.append(
                CompileCase(
                    f"paged_decode_attention {target.label} {splits} splits",
                    decode_kernel,
                    signature,
                    {**constants, "SPLITS": splits, "LIMITED": shape.name == LIMITED, "SINKS": has_sinks},
                    num_warps,
                    num_stages,
                    (*tensors, *partial, *sinks),
                    capabilities,
                )
            )
        if shape.name in JOINED:
            cases.append(
                CompileCase(
                    f"paged_decode_attention join {target.label}",
                    join_kernel,
                    {**partial, "out": f"*{target.dtype}"},
                    join_constants(shape.head_dim, 8),
                    4,
                    ONE_BUFFER,
                    (*partial, "out"),
                    capabilities,
                )
            )
    return cases
