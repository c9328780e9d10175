"""AVX512 without VNNI: Skylake-X."""

from inference_server.kernels.isa.avx2 import Avx2
from inference_server.kernels.isa.instruction_set import Tiling


class Avx512(Avx2):
    """The instructions of AVX2 on 32 registers of 512 bits."""

    name = "avx512"
    llvm_cpu = "skylake-avx512"
    required: tuple[str, ...] = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "fma", "f16c")
    lanes = 16
    int8_tiling = Tiling(2, (1, 2, 4))
    int4_tiling = Tiling(1, (1, 2, 4, 8))
    bf16_tiling = Tiling(2, (1, 2, 4, 8))
    multiply_bytes = "llvm.x86.avx512.pmaddubs.w.512"
    add_pairs = "llvm.x86.avx512.pmaddw.d.512"
