"""AMX: tile registers for int8 and bfloat16, of Sapphire Rapids and newer."""

from inference_server.kernels.isa.amx.bf16_unit import AmxBf16Unit
from inference_server.kernels.isa.amx.int4_unit import AmxInt4Unit
from inference_server.kernels.isa.amx.int8_unit import AmxInt8Unit
from inference_server.kernels.isa.avx512_bf16 import Avx512Bf16


class Amx(Avx512Bf16):
    """Multiplies on tile registers where there are enough rows, otherwise on vectors of 512 bits."""

    name = "amx"
    llvm_cpu = "sapphirerapids"
    required: tuple[str, ...] = (*Avx512Bf16.required, "amx-tile", "amx-int8", "amx-bf16")
    unsigned_codes = False
    min_rows_widened = 9
    bf16_unit = AmxBf16Unit
    int8_unit = AmxInt8Unit
    int4_unit = AmxInt4Unit
