"""Counts the instructions that matrix products execute per weight, for every instruction set except AMX, on any CPU.

`python -m benchmarks.kernels.instruction_counts` compiles the kernels and prints a table in Markdown. Only innermost loops are
counted. The kernels are compiled for the baseline CPU of each instruction set: `llvm_cpu` in its file in
inference_server/kernels/isa.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from inference_server.kernels.emit.module import Target, assembly
from inference_server.kernels.isa.instruction_set import InstructionSet
from inference_server.kernels.isa.table import INSTRUCTION_SETS
from inference_server.kernels.linear.bf16 import make_bf16
from inference_server.kernels.linear.int4 import make_int4
from inference_server.kernels.linear.int8 import make_int8
from inference_server.kernels.linear.layer import OutputFormat

ROWS = (1, 4, 8)
KERNELS = {"bf16": make_bf16(OutputFormat(is_bf16=True)), "int8": make_int8(False), "int4": make_int4(False)}
# Weights of a panel that one iteration of the innermost loop multiplies: 16 outputs times the inputs of a step.
_WEIGHTS = {"bf16": 16 * 32, "int8": 16 * 64, "int4": 16 * 32}
_FUNCTION = re.compile(r"^(\w+):[^\n]*\n(.*?)^\.Lfunc_end", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"(bf16|int8|int4)_(\d+)(?:x(\d))?")
_STACK = re.compile(r"\[sp\b|\(%rsp|\(%rbp|\[x29\b")


@dataclass(frozen=True)
class Loop:
    """An innermost loop.

    Attributes:
        rows: Rows of activations that it multiplies.
        weights: Weights that one iteration multiplies.
        instructions: Instructions of its body.
        stack_accesses: Instructions of its body that read or write the stack.
    """

    rows: int
    weights: int
    instructions: int
    stack_accesses: int


def loops(text: str) -> Iterator[Loop]:
    """Yield the longest loop of each function of a kernel's assembly that multiplies rows of activations."""
    for name, body in _FUNCTION.findall(text):
        block = _BLOCK.fullmatch(name)
        if block is not None:
            instructions = _longest_loop(body)
            weights = _WEIGHTS[block[1]] * int(block[3] or 1)
            on_stack = sum(bool(_STACK.search(line)) for line in instructions)
            yield Loop(int(block[2]), weights, len(instructions), on_stack)


def _longest_loop(body: str) -> list[str]:
    """Return the instructions of the longest loop of a function: from a label to the last jump back to it."""
    lines = [line.strip() for line in body.splitlines()]
    labels = {line.split(":")[0]: index for index, line in enumerate(lines) if re.match(r"\.L\w+:", line)}
    spans = [
        lines[labels[target] : index + 1]
        for index, line in enumerate(lines)
        if (target := line.split()[-1] if line else "") in labels and labels[target] < index
    ]
    found = [[line for line in span if line and line[0] not in ".#/"] for span in spans]
    return max(found, key=len, default=[])


def per_weight(found: list[Loop], num_rows: int) -> float:
    """Return the number of instructions per weight that a product with `num_rows` rows executes for all of its rows."""
    total, rest = 0.0, num_rows
    for loop in sorted(found, key=lambda loop: -loop.rows):
        total += rest // loop.rows * loop.instructions / loop.weights
        rest %= loop.rows
    return total


def compiled_loops(isa: InstructionSet, kernel: str, triple: str) -> list[Loop]:
    """Return the innermost loops of a kernel of `KERNELS`, compiled for the baseline CPU of an instruction set."""
    return list(loops(assembly(KERNELS[kernel], isa, Target(triple, isa.llvm_cpu, isa.llvm_features))))


def table() -> Iterator[str]:
    """Yield the lines of the table. AMX is left out, because its products use tile registers."""
    columns = ["instruction set", "weights", *(f"{rows} row{'s'[: rows > 1]}" for rows in ROWS), "stack accesses"]
    yield f"| {' | '.join(columns)} |"
    yield "|---|---|" + "---:|" * (len(columns) - 2)
    seen = set()
    for isa in INSTRUCTION_SETS:
        if isa.name in seen or isa.name == "amx":
            continue
        seen.add(isa.name)
        for kernel in KERNELS:
            found = compiled_loops(isa, kernel, f"{isa.architecture}-unknown-linux-gnu")
            counts = [f"{per_weight(found, rows):.3f}" for rows in ROWS]
            yield f"| {isa.name} | {kernel} | {' | '.join(counts)} | {sum(loop.stack_accesses for loop in found)} |"


if __name__ == "__main__":
    print(*table(), sep="\n")
