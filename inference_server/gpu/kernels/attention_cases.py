"""Specialisations of the attention kernels to compile without a GPU: models' shapes, dtypes and devices."""

from collections.abc import Iterator
from typing import NamedTuple

from inference_server.gpu.kernels.attention_tiles import Device
from inference_server.gpu.kernels.compile_case import BFLOAT16_CAPABILITIES, CAPABILITIES, SHARED_MEMORY_BYTES

BLOCK_SIZE = 32


class AttentionShape(NamedTuple):
    """The sizes of a model's attention."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int


SHAPES = (
    AttentionShape("smollm2-135m", 9, 3, 64),
    AttentionShape("llama-2-7b", 32, 32, 128),
    AttentionShape("llama-3.1-8b", 32, 8, 128),
    AttentionShape("qwen3-0.6b", 16, 8, 128),
    AttentionShape("qwen3-14b", 40, 8, 128),
    AttentionShape("qwen3-32b", 64, 8, 128),
    AttentionShape("gemma-2-9b", 16, 8, 256),
    AttentionShape("phi-3-mini", 32, 32, 96),
    AttentionShape("gpt-oss-20b", 64, 8, 64),
)
# The shape that is compiled in every variant: it needs the most registers of the models in the catalogs.
DETAILED = "llama-3.1-8b"
# The shapes for which the kernel that joins splits is compiled: one for each head_dim.
JOINED = ("smollm2-135m", "llama-3.1-8b", "gemma-2-9b", "phi-3-mini")
# The shape with a softcap and a sliding window.
LIMITED = "gemma-2-9b"
# A shape with attention sinks. Its layers alternate between a sliding window and full attention.
WITH_SINKS = "gpt-oss-20b"


class Target(NamedTuple):
    """A shape, Triton's name for the dtype, and a device."""

    shape: AttentionShape
    dtype: str
    device: Device

    @property
    def label(self) -> str:
        """The part of a case's name that states the shape and the dtype."""
        return f"{self.shape.name} {self.dtype}"


def targets() -> Iterator[Target]:
    """Yield every combination of shape, dtype and device, with bfloat16 only where the device supports it.

    The number of multiprocessors has no effect on the compiled code, so it is set to 1.
    """
    for capability in CAPABILITIES:
        device = Device(capability, SHARED_MEMORY_BYTES[capability], 1)
        for shape in SHAPES:
            yield Target(shape, "fp16", device)
            if capability in BFLOAT16_CAPABILITIES:
                yield Target(shape, "bf16", device)
