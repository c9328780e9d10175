"""AVX512 with VNNI: Cascade Lake, Ice Lake."""

from inference_server.kernels.isa.avx512 import Avx512
from inference_server.kernels.isa.avx_vnni import AvxVnni
from inference_server.kernels.isa.instruction_set import Tiling


class Avx512Vnni(AvxVnni):
    """Multiplies with the instruction vpdpbusd, on 512-bit vectors."""

    name = "avx512-vnni"
    llvm_cpu = "cascadelake"
    required: tuple[str, ...] = (*Avx512.required, "avx512vnni")
    lanes = Avx512.lanes
    int8_tiling = Tiling(2, (1, 2, 4))
    int4_tiling = Avx512.int4_tiling
    bf16_tiling = Avx512.bf16_tiling
    multiply_add_bytes = "llvm.x86.avx512.vpdpbusd.512"
