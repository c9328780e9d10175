"""Attention of the new tokens of several sequences (segments), on keys and values in the paged cache, in one kernel.

The query heads of a KV head's group are rows of the same program: row r of a segment is query head r % group of token
r // group. Keys and values are then read once for the whole group, and short segments fill the rows.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped"
import torch
import triton
import triton.language as tl
from torch import Tensor

from inference_server.gpu.kernels.attention_cases import BLOCK_SIZE, DETAILED, LIMITED, WITH_SINKS, targets
from inference_server.gpu.kernels.attention_tiles import (
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


@triton.jit(
    do_not_specialize=["table_stride", "starts_stride", "lengths_stride", "window"],
    do_not_specialize_on_alignment=["table", "starts", "lengths"],
)
def prefill_kernel(
    query,
    keys,
    values,
    table,
    starts,
    lengths,
    sinks,
    out,
    table_stride,
    starts_stride,
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
    WINDOWED: tl.constexpr,
    LIMITED: tl.constexpr,
    SINKS: tl.constexpr,
):
    """Compute program (tile, KV head, segment): ROWS rows, with all keys up to the last row's position.

    The last tiles have the most keys, so they start first. Key tiles that all rows see completely need no mask. Before
    them are tiles that the sliding window masks in part. After them are tiles that the rows' own positions mask in
    part.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    segment = tl.program_id(2)
    head = tl.program_id(1)
    begin_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    start = tl.load(starts + segment * starts_stride)
    num_tokens = tl.load(starts + (segment + 1) * starts_stride) - start
    num_rows = num_tokens * GROUP
    if begin_row >= num_rows:
        return
    before = tl.load(lengths + segment * lengths_stride) - num_tokens
    rows = begin_row + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    # Rows beyond the segment have a query of zeros and the last token's position.
    tokens = tl.minimum(rows // GROUP, num_tokens - 1)
    positions = before + tokens
    places = (start + tokens).to(tl.int64) * HEADS + head * GROUP + rows % GROUP
    inside = (rows < num_rows)[:, None] & (columns < DIM)[None, :]
    queries = tl.load(query + places[:, None] * DIM + columns[None, :], mask=inside, other=0.0)

    first = before + begin_row // GROUP
    last = before + tl.minimum((begin_row + ROWS - 1) // GROUP, num_tokens - 1)
    end = last + 1
    clear_end = (first + 1) // TILE * TILE
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    top, total = initial_state(sinks, head * GROUP + rows % GROUP, rows < num_rows, ROWS, SINKS)
    pages = table + segment.to(tl.int64) * table_stride
    begin = 0
    if WINDOWED:
        begin = tl.maximum(first - window + 1, 0) // TILE * TILE
        clear_begin = tl.cdiv(tl.maximum(last - window + 1, 0), TILE) * TILE
        cut_end = tl.minimum(clear_begin, end)
        # fmt: off
        acc, top, total = attend(
            acc, top, total, queries, keys, values, pages, head, begin, cut_end, positions, scale, limit, window,
            KV_HEADS, DIM, WIDTH, PAGE, TILE, True, True, LIMITED,
        )
        begin = cut_end
        clear_end = tl.maximum(clear_end, begin)
    acc, top, total = attend(
        acc,
        top,
        total,
        queries,
        keys,
        values,
        pages,
        head,
        begin,
        clear_end,
        positions,
        scale,
        limit,
        window,
        KV_HEADS,
        DIM,
        WIDTH,
        PAGE,
        TILE,
        False,
        False,
        LIMITED,
    )
    acc, top, total = attend(
        acc,
        top,
        total,
        queries,
        keys,
        values,
        pages,
        head,
        clear_end,
        end,
        positions,
        scale,
        limit,
        window,
        KV_HEADS,
        DIM,
        WIDTH,
        PAGE,
        TILE,
        True,
        WINDOWED,
        LIMITED,
    )
    # fmt: on
    tl.store(
        out + places[:, None] * DIM + columns[None, :], (acc / total[:, None]).to(out.dtype.element_ty), mask=inside
    )


def paged_prefill_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    starts: Tensor,
    lengths: Tensor,
    longest: int,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Launch the kernel behind ops.paged_prefill_attention, which describes arguments and result."""
    num_heads, head_dim = query.shape[1:]
    page, num_kv_heads = keys.shape[1:3]
    out = torch.empty_like(query)
    num_segments = lengths.shape[0]
    rows = longest * (num_heads // num_kv_heads)
    if rows == 0 or num_segments == 0:
        return out
    constants, num_warps, num_stages = launch_constants(
        num_heads, num_kv_heads, head_dim, page, rows, sliding_window is not None, device_of(query)
    )
    scale, limit = exponent_factors(scaling, softcap)
    prefill_kernel[(triton.cdiv(rows, constants["ROWS"]), num_kv_heads, num_segments)](
        query,
        keys,
        values,
        table,
        starts,
        lengths,
        query if sinks is None else sinks,
        out,
        table.stride(0),
        starts.stride(0),
        lengths.stride(0),
        scale,
        limit,
        2**30 if sliding_window is None else sliding_window,
        **constants,
        WINDOWED=sliding_window is not None,
        LIMITED=softcap is not None,
        SINKS=sinks is not None,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out


def launch_constants(
    num_heads: int, num_kv_heads: int, head_dim: int, page: int, longest_rows: int, windowed: bool, device: Device
) -> tuple[dict[str, int], int, int]:
    """Return prefill_kernel's constants and its numbers of warps and stages.

    WINDOWED, LIMITED and SINKS are not included. Tiles are as large as registers and shared memory allow, without spilling.

    Args:
        num_heads: Number of query heads.
        num_kv_heads: Number of KV heads.
        head_dim: Width of a head.
        page: Number of tokens of a block of the cache.
        longest_rows: Number of rows of the longest segment; selects one of row_counts.
        windowed: True for a sliding window.
        device: The GPU.
    """
    width = max(MIN_WIDTH, triton.next_power_of_2(head_dim))
    counts = row_counts(head_dim, device)
    rows = next((count for count in counts if count >= longest_rows), counts[-1])
    stages = ONE_BUFFER if width > 128 and not device.is_large else TWO_BUFFERS
    if not device.has_tensor_cores:
        tile, num_warps = 16, 4
    elif width > 128:
        tile, num_warps = 32, 4 if rows == 16 else 8
    else:
        # Before compute capability 9.0, tensor cores read the keys from registers, not from shared memory.
        is_short_of_registers = device.capability < 90 and (rows == 64 or windowed)
        # From 10.0, the assembler gives narrow heads 128 registers. With sinks, a tile of 64 keys would spill some.
        is_short_of_registers |= device.capability >= 100 and width <= 64
        tile, num_warps = 32 if is_short_of_registers or not device.is_large else 64, 8 if rows == 128 else 4
    constants = {
        "HEADS": num_heads,
        "KV_HEADS": num_kv_heads,
        "DIM": head_dim,
        "PAGE": page,
        "ROWS": rows,
        "WIDTH": width,
        "TILE": tile,
    }
    return constants, num_warps, stages


def row_counts(head_dim: int, device: Device) -> tuple[int, ...]:
    """Return the numbers of rows for which prefill_kernel is compiled, in ascending order."""
    if not device.has_tensor_cores:
        return (16, 32) if head_dim <= 128 else (16,)
    return (16, 64, 128) if head_dim <= 128 else (16, 64)


def compile_cases() -> list[CompileCase]:
    """Return the specialisations for the models' shapes, with the most rows.

    One shape is also compiled with fewer rows, and three with a sliding window.
    """
    cases = []
    for target in targets():
        shape = target.shape
        counts = row_counts(shape.head_dim, target.device)
        tensors = dict.fromkeys(("query", "keys", "values", "out"), f"*{target.dtype}")
        pages = dict.fromkeys(("table", "starts", "lengths"), "*i32")
        numbers = dict.fromkeys(("table_stride", "starts_stride", "lengths_stride", "window"), "i32")
        variants = [(rows, shape.name == LIMITED) for rows in (counts if shape.name == DETAILED else counts[-1:])]
        has_sinks = shape.name == WITH_SINKS
        sinks = {"sinks": "*fp32" if has_sinks else tensors["query"]}
        if shape.name == DETAILED or has_sinks:
            variants.append((counts[-1], True))
        for rows, windowed in variants:
            constants, num_warps, num_stages = launch_constants(*shape[1:], BLOCK_SIZE, rows, windowed, target.device)
            cases.append(
                CompileCase(
                    f"paged_prefill_attention {target.label} {rows} rows{' windowed' if windowed else ''}",
                    prefill_kernel,
                    {**tensors, **pages, **numbers, **sinks, "scale": "fp32", "limit": "fp32"},
                    {**constants, "WINDOWED": windowed, "LIMITED": shape.name == LIMITED, "SINKS": has_sinks},
                    num_warps,
                    num_stages,
                    (*tensors, *sinks),
                    (target.device.capability,),
                )
            )
    return cases
