"""Emits the kernel `sample_rows`, which samples one token for each row of logits. Work items are rows.

The argument block (int64 words):

- word 0: work items taken
- word 3: records of the rows (record.py)
- word 4: number of rows
- word 5: number of tokens, at least 64
- word 6: hashes of the tokens, (2, tokens) int32

A row whose token depends on rounding has the result UNDECIDED. Two scores are then nearly equal, or the mass before the
sampled token is nearly top_p. The caller then samples this row with torch. So the tokens are those of torch's version
on every instruction set.
"""

from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.module import Emit
from inference_server.kernels.emit.values import Int
from inference_server.kernels.sampling.draw import draw, tolerance
from inference_server.kernels.sampling.edits import add_bias, forbid, penalise
from inference_server.kernels.sampling.examine import find_largest, list_top
from inference_server.kernels.sampling.limits import apply_top_p, limit_min_p, limit_top_k, weigh
from inference_server.kernels.sampling.record import (
    ALLOWED,
    BIASED,
    LARGEST,
    NUM_PENALISED,
    RECORD_WORDS,
    TEMPERATURE,
    TOKEN,
    TOP,
    TOP_K,
    TOP_P,
    TOP_SIZE,
    TOTAL,
    UNDECIDED,
)
from inference_server.kernels.sampling.scan import (
    BEST,
    BEST_TOKEN,
    FACTOR,
    INFINITY,
    LIMIT,
    LIMIT_TOKEN,
    MASS,
    PEAK,
    SECOND,
    STATE_BYTES,
    Scan,
)


def make_sample_rows() -> Emit:
    """Return the function that emits the kernel `sample_rows`."""

    def sample_rows(code: Code, block: Int) -> None:
        state = code.stack(STATE_BYTES)
        records, num_rows = code.argument(block, 3), code.argument(block, 4)
        vocab_size, tables = code.argument(block, 5), code.argument(block, 6)
        with code.work_items(block, num_rows) as row:
            _sample(Scan(code, records + row * (8 * RECORD_WORDS), state, tables, vocab_size))

    return sample_rows


def _sample(scan: Scan) -> None:
    code = scan.code
    edits = ((BIASED, "add_bias", add_bias), (NUM_PENALISED, "penalise", penalise), (ALLOWED, "forbid", forbid))
    for word, name, edit in edits:
        with code.when(scan.word(word) > 0):
            scan.call(name, edit)
    scan.call("find_largest", find_largest)
    code.store(scan.float_at(PEAK), scan.record + 8 * LARGEST)
    _open_limit(scan)
    with code.when(scan.word(TOP) > 0):
        scan.set(FACTOR, code.number(1.0))
        scan.call("weigh", weigh)
        code.store(scan.float_at(MASS), scan.record + 8 * TOTAL)
        with code.when(scan.word(TOP_SIZE) > 0):
            scan.call("list_top", list_top)
    with code.when(scan.number(TEMPERATURE) > 0.0):
        top_k = scan.word(TOP_K)
        with code.when((top_k > 0) & (top_k < scan.vocab_size)):
            scan.call("limit_top_k", limit_top_k)
        limit_min_p(scan)
        scan.call("draw", draw)
        with code.when(scan.number(TOP_P) < 1.0):
            scan.call("apply_top_p", apply_top_p)
        is_near = scan.float_at(SECOND) > scan.float_at(BEST) - tolerance(scan, scan.float_at(BEST))
        with code.when(is_near):
            scan.set(BEST_TOKEN, code.integer(UNDECIDED))
    code.store(scan.token_at(BEST_TOKEN), scan.record + 8 * TOKEN)


def _open_limit(scan: Scan) -> None:
    """Set a limit that excludes no token."""
    scan.set(LIMIT, scan.code.number(-INFINITY))
    scan.set(LIMIT_TOKEN, scan.vocab_size)
