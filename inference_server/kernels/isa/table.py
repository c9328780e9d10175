"""Lists the instruction sets that kernels are written for."""

from inference_server.kernels.isa.amx.instruction_set import Amx
from inference_server.kernels.isa.avx2 import Avx2
from inference_server.kernels.isa.avx512 import Avx512
from inference_server.kernels.isa.avx512_bf16 import Avx512Bf16
from inference_server.kernels.isa.avx512_vnni import Avx512Vnni
from inference_server.kernels.isa.avx_vnni import AvxVnni, AvxVnniInAvx512
from inference_server.kernels.isa.instruction_set import InstructionSet
from inference_server.kernels.isa.neon import Neon
from inference_server.kernels.isa.neon_bf16 import NeonBf16
from inference_server.kernels.isa.neon_dotprod import NeonDotprod

# The instruction sets, the best one first. Two with the same name are one instruction set in two encodings.
INSTRUCTION_SETS: tuple[InstructionSet, ...] = (
    Amx(),
    Avx512Bf16(),
    Avx512Vnni(),
    Avx512(),
    AvxVnni(),
    AvxVnniInAvx512(),
    Avx2(),
    NeonBf16(),
    NeonDotprod(),
    Neon(),
)
