"""The type of one specialisation of a Triton kernel, for compiling without a GPU. Imports neither torch nor Triton."""

from dataclasses import dataclass
from typing import Any

# Compute capabilities, times 10: T4; A100; A10 and consumer Ampere; L4 and Ada; H100 and H200; B200.
CAPABILITIES = (75, 80, 86, 89, 90, 100)
# bfloat16 needs one of these compute capabilities.
BFLOAT16_CAPABILITIES = tuple(capability for capability in CAPABILITIES if capability >= 80)
# The largest shared memory of one thread block (Triton calls it a program) in bytes, by compute capability.
SHARED_MEMORY_BYTES = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}


@dataclass(frozen=True, slots=True)
class CompileCase:
    """A kernel, the types of its arguments and the values of its constants, as one launch would compile them.

    Attributes:
        name: Name of the case in reports, such as "paged_decode_attention llama-3.1-8b fp16 8 splits".
        kernel: The function with @triton.jit.
        signature: Triton's types of all arguments that are not constants, such as "*fp16" and "i32", by name.
        constants: The values of the tl.constexpr arguments, by name.
        num_warps: Number of warps of a program.
        num_stages: Number of stages of the kernel's software pipeline.
        divisible: Names of the arguments that are divisible by 16, which Triton detects at a launch. These include
            aligned pointers.
        capabilities: The compute capabilities, times 10, on which a launch uses exactly these constants.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    divisible: tuple[str, ...] = ()
    capabilities: tuple[int, ...] = CAPABILITIES


def pointers(signature: dict[str, str]) -> tuple[str, ...]:
    """Return the names of a signature's pointers. torch aligns its tensors, so they are divisible by 16."""
    return tuple(name for name, kind in signature.items() if kind.startswith("*"))
