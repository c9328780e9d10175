"""The launchers of the Triton kernels, by the names of the operators in ops.py. Importing this module imports Triton."""

from inference_server.gpu.kernels.decode_attention import paged_decode_attention
from inference_server.gpu.kernels.int8_linear import int8_linear
from inference_server.gpu.kernels.norms import add_rms_norm, rms_norm
from inference_server.gpu.kernels.prefill_attention import paged_prefill_attention
from inference_server.gpu.kernels.rope import rope_and_write
from inference_server.gpu.kernels.silu import silu_mul

__all__ = [
    "add_rms_norm",
    "int8_linear",
    "paged_decode_attention",
    "paged_prefill_attention",
    "rms_norm",
    "rope_and_write",
    "silu_mul",
]
