"""Compiles every kernel for every instruction set of this architecture: python -m inference_server.kernels.jit.ahead_of_time

The build of a container image runs this command, so that a first start compiles nothing. The files are stored in the
package, in the folder `compiled`. The machine that compiles need not have the instruction sets.
"""

import inspect
import itertools
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from inference_server.kernels.emit.module import Emit, compile_kernel
from inference_server.kernels.isa import cpu
from inference_server.kernels.isa.choice import target
from inference_server.kernels.isa.instruction_set import ARM, X86, InstructionSet
from inference_server.kernels.isa.table import INSTRUCTION_SETS
from inference_server.kernels.jit.kernel import makers, variant_name
from inference_server.kernels.jit.object_cache import path_of, shipped_folder, write


def variants() -> Iterator[tuple[str, Emit]]:
    """Yield the name and the generator of every kernel, for every combination of tensor types."""
    for name, make in makers().items():
        num_types = len(inspect.signature(make).parameters)
        for is_bf16 in itertools.product((False, True), repeat=num_types):
            yield variant_name(name, is_bf16), make(*is_bf16)


def instruction_sets() -> list[InstructionSet]:
    """Return the instruction sets of this process's architecture, the first one of each name."""
    architecture = X86 if cpu.is_x86() else ARM
    found = {each.name: each for each in reversed(INSTRUCTION_SETS) if each.architecture == architecture}
    return list(found.values())


def compile_all(folder: Path) -> int:
    """Compile every kernel into `folder`, and print one line for each instruction set. Returns the number of kernels.

    The instruction sets are compiled in parallel, one process for each core.
    """
    total = 0
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        for number, line in pool.map(partial(_compile, folder), range(len(instruction_sets()))):
            print(line, flush=True)
            total += number
    return total


def _compile(folder: Path, index: int) -> tuple[int, str]:
    """Compile every kernel for one of `instruction_sets`. Returns the number of kernels, and the line to print."""
    isa = instruction_sets()[index]
    compiled = [(path_of(folder, name, isa), compile_kernel(emit, isa, target(isa))) for name, emit in variants()]
    for path, code in compiled:
        write(path, code)
    size = sum(len(code) for _, code in compiled)
    return len(compiled), f"{isa.name}: {len(compiled)} kernels, {size / 1024:.0f} KiB"


if __name__ == "__main__":
    compile_all(shipped_folder())
