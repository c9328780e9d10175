"""Measures the bandwidth of reading memory, which bounds the speed of a product with one row."""

import ctypes
import mmap
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_MIB = 2**20
_HUGE_PAGE = 2 * _MIB
_STEP_BYTES = 512  # bytes that one iteration of the loop reads
_ROUNDS = 12
# Each iteration loads 64 bytes eight times, into eight independent sums that do not wait for each other. LLVM splits the
# 64 bytes into the CPU's own vectors.
_LOADS = range(8)


class Reader:
    """Memory in large pages, where the system allows them, and a compiled loop that reads it."""

    def __init__(self, mib: int) -> None:
        """Allocate and fill `mib` MiB, which should be much more than all caches."""
        self._size = mib * _MIB
        # By default, mmap returns shared memory, for which the system does not use large pages.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, self._size + _HUGE_PAGE, flags=flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._start = start + -start % _HUGE_PAGE
        ctypes.memset(self._start, 1, self._size)
        self._engine, address = _compiled()
        self._read: Any = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)(address)

    def bytes_per_s(self, threads: int) -> float:
        """Return the largest bandwidth of _ROUNDS rounds, in bytes per second of wall time."""
        part = self._size // threads // _STEP_BYTES * _STEP_BYTES
        with ThreadPoolExecutor(threads) as pool:
            parts = [(self._start + number * part, part) for number in range(threads)]
            list(pool.map(lambda each: self._read(*each), parts))
            return max(self._round(pool, parts) for _ in range(_ROUNDS))

    def bytes_per_cpu_s(self) -> float:
        """Return the largest bandwidth of one thread in _ROUNDS rounds, in bytes per second of its CPU time."""
        best = 0.0
        for _ in range(_ROUNDS):
            before = time.thread_time()
            self._read(self._start, self._size)
            best = max(best, self._size / (time.thread_time() - before))
        return best

    def _round(self, pool: ThreadPoolExecutor, parts: list[tuple[int, int]]) -> float:
        before = time.perf_counter()
        list(pool.map(lambda each: self._read(*each), parts))
        return sum(size for _, size in parts) / (time.perf_counter() - before)


def _source() -> str:
    """Return the LLVM IR of a function that reads a memory area and returns the exclusive or of its 64-bit words."""
    phis = "\n".join(f"  %sum{n} = phi <8 x i64> [zeroinitializer, %entry], [%new{n}, %loop]" for n in _LOADS)
    loads = "\n".join(
        f"  %at{n} = add i64 %at, {64 * n}\n"
        f"  %address{n} = getelementptr i8, ptr %start, i64 %at{n}\n"
        f"  %value{n} = load <8 x i64>, ptr %address{n}, align 64\n"
        f"  %new{n} = xor <8 x i64> %sum{n}, %value{n}"
        for n in _LOADS
    )
    sums = "\n".join(
        f"  %total{n} = xor <8 x i64> {f'%total{n - 1}' if n else 'zeroinitializer'}, %new{n}" for n in _LOADS
    )
    return f"""
define i64 @read_bytes(ptr %start, i64 %bytes) {{
entry:
  br label %loop
loop:
  %at = phi i64 [0, %entry], [%next, %loop]
{phis}
{loads}
  %next = add i64 %at, {_STEP_BYTES}
  %more = icmp ult i64 %next, %bytes
  br i1 %more, label %loop, label %done
done:
{sums}
  %all = call i64 @llvm.vector.reduce.xor.v8i64(<8 x i64> %total7)
  ret i64 %all
}}
declare i64 @llvm.vector.reduce.xor.v8i64(<8 x i64>)
"""


def _compiled() -> tuple[Any, int]:
    """Return LLVM's execution engine, which must stay alive, and the address of the compiled function."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    features = binding.get_host_cpu_features().flatten() + ",-prefer-256-bit"
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features, opt=2
    )
    engine = binding.create_mcjit_compiler(binding.parse_assembly(_source()), machine)
    engine.finalize_object()
    return engine, engine.get_function_address("read_bytes")
