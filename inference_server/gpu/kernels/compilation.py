"""Compiles the Triton kernels without a GPU, for each compute capability, and checks their registers and shared memory.

`python -m inference_server.gpu.kernels.compilation` prints one line for each specialisation: registers of a thread,
bytes that spill from registers to memory, and shared memory. It ends with status 1 if one of them exceeds its limit.
"""

# mypy: disable-error-code="import-untyped"
import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from inference_server.gpu.kernels.compile_case import CAPABILITIES, SHARED_MEMORY_BYTES, CompileCase

# Each of these modules has a function compile_cases().
MODULES = ("decode_attention", "prefill_attention", "int8_linear", "norms", "rope", "silu")
# CUDA's limit on the registers of a thread.
MAX_REGISTERS = 255

_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)")
_PROGRESS_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Report:
    """Resources that a compiled kernel needs.

    Attributes:
        name: The case's name.
        capability: Compute capability, times 10.
        registers: Number of 32-bit registers of a thread.
        spilled_bytes: Bytes of each thread's values that do not fit in registers.
        shared_memory: Bytes of shared memory of a program.
    """

    name: str
    capability: int
    registers: int
    spilled_bytes: int
    shared_memory: int

    def problems(self) -> list[str]:
        """Return the limits that the kernel exceeds, as clauses; empty if it exceeds none."""
        limit = SHARED_MEMORY_BYTES[self.capability]
        found = []
        if self.registers > MAX_REGISTERS:
            found.append(f"{self.registers} registers are more than {MAX_REGISTERS}")
        if self.spilled_bytes:
            found.append(f"{self.spilled_bytes} bytes of each thread spill")
        if self.shared_memory > limit:
            found.append(f"{self.shared_memory} bytes of shared memory are more than {limit}")
        return found


def cases_of(module: str) -> list[CompileCase]:
    """Return the specialisations of a module of this package, by its name in MODULES."""
    cases: list[CompileCase] = importlib.import_module(f"{__package__}.{module}").compile_cases()
    return cases


def compile_case(case: CompileCase, capability: int) -> Report:
    """Compile one specialisation for a compute capability (times 10).

    This takes 0.1 to 5 s, less if Triton has cached the result.

    Raises:
        triton.compiler.errors.CompilationError: The kernel's source is wrong for these constants.
        RuntimeError: Triton cannot translate the kernel for this capability, or one of Triton's tools fails.
    """
    names = case.kernel.arg_names
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in case.divisible}
    source = ASTSource(case.kernel, signature, case.constants, attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _usage(compiled.asm["cubin"])
    return Report(case.name, capability, registers, spilled, compiled.metadata.shared)


def _usage(cubin: bytes) -> tuple[int, int]:
    """Return a thread's number of registers and its bytes outside registers, as cuobjdump reports them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        output = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    found = _USAGE.search(output)
    if found is None:
        raise RuntimeError(f"cuobjdump reports no registers: {output!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def compile_indexed(module: str, index: int, capability: int) -> Report:
    """Compile one specialisation of `module`, by its index: kernels cannot be pickled for another process."""
    return compile_case(cases_of(module)[index], capability)


def reports(
    modules: Sequence[str], capabilities: Sequence[int], *, only_first: bool, processes: int
) -> Iterator[tuple[int, int, Report]]:
    """Compile the specialisations of some modules in parallel. Yields a number from 1, the total, and a report.

    Args:
        modules: Names from MODULES.
        capabilities: Compute capabilities, times 10.
        only_first: Compile a module's first specialisation for each capability only.
        processes: Number of processes; 1 is this process.
    """
    jobs = []
    for capability in capabilities:
        for module in modules:
            found = [index for index, case in enumerate(cases_of(module)) if capability in case.capabilities]
            jobs += [(module, index, capability) for index in (found[:1] if only_first else found)]
    if processes == 1:
        for number, job in enumerate(jobs, start=1):
            yield number, len(jobs), compile_indexed(*job)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for number, report in enumerate(pool.map(compile_indexed, *zip(*jobs, strict=True)), start=1):
            yield number, len(jobs), report


def _parse(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.compilation", description=__doc__)
    parser.add_argument("--modules", nargs="+", choices=MODULES, default=list(MODULES), help="only these kernels")
    parser.add_argument("--capabilities", nargs="+", type=int, choices=CAPABILITIES, default=list(CAPABILITIES))
    parser.add_argument("--first", action="store_true", help="only the first specialization of each module")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and return the exit status: 1 if a kernel exceeds a limit, 2 under Triton's interpreter."""
    chosen = _parse(arguments)
    if knobs.runtime.interpret:
        print("TRITON_INTERPRET is set: kernels can only be compiled without it", file=sys.stderr)
        return 2
    print(f"Triton {triton.__version__}")
    print(f"{'kernel':<60} {'capability':>10} {'registers':>9} {'spilled':>7} {'shared memory':>13}")
    has_problem, reported = False, time.monotonic()
    for number, total, report in reports(
        chosen.modules, chosen.capabilities, only_first=chosen.first, processes=chosen.processes
    ):
        problems = ", ".join(report.problems())
        has_problem = has_problem or bool(problems)
        print(
            f"{report.name:<60} {report.capability / 10:>10} {report.registers:>9} {report.spilled_bytes:>7} "
            f"{report.shared_memory:>13}  {problems}".rstrip(),
            flush=True,
        )
        if time.monotonic() - reported > _PROGRESS_SECONDS:
            reported = time.monotonic()
            print(f"compiled {number} of {total}", file=sys.stderr, flush=True)
    return 1 if has_problem else 0


if __name__ == "__main__":
    sys.exit(main())
