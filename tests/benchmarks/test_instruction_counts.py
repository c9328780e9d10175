"""The instructions that are counted in a kernel's assembly."""

import pytest

from benchmarks.kernels.instruction_counts import Loop, compiled_loops, loops, per_weight
from inference_server.kernels.isa.neon_dotprod import NeonDotprod

ASSEMBLY = """int8_2x1:
\tcbz\tx2, .LBB1_3
.LBB1_2:
\t//APP
\tldr\tq0, [sp, #16]
\tadd\tx8, x8, #1
\tcmp\tx8, x2
\tb.lo\t.LBB1_2
.LBB1_3:
\tret
.Lfunc_end1:
"""


def test_the_instructions_between_a_label_and_the_jump_back_count():
    assert list(loops(ASSEMBLY)) == [Loop(rows=2, weights=1024, instructions=4, stack_accesses=1)]


def test_rows_are_covered_by_the_largest_blocks_first():
    blocks = [Loop(1, 100, 10, 0), Loop(2, 100, 15, 0)]
    assert per_weight(blocks, 5) == pytest.approx(0.15 + 0.15 + 0.1)


@pytest.mark.parametrize("kernel", ["int8", "int4"])
def test_products_of_integers_on_arm_need_no_stack(kernel):
    found = compiled_loops(NeonDotprod(), kernel, "aarch64-unknown-linux-gnu")
    assert sorted(loop.rows for loop in found) == [1, 2]
    assert not any(loop.stack_accesses for loop in found)
