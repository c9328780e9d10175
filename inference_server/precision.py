"""Defines the number formats of weights, and maps each one to the formats that a device computes in.

Importing this module does not import torch, so that the catalog can be read without it.
"""

from typing import TYPE_CHECKING, Literal

from inference_server.kernels.isa import cpu as isa
from tailrace_shared.config_errors import ConfigurationError

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "float16", "bfloat16", "bitsandbytes-int8", "int4"]


def choose_device(wanted: str) -> "torch.device":
    """Return the device for `auto`, `cpu` or `cuda`.

    Raises:
        ConfigurationError: `cuda` is requested and torch finds no GPU.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise ConfigurationError("TAILRACE_DEVICE=cuda, but torch finds no GPU here")
    return torch.device("cuda" if has_cuda and wanted != "cpu" else "cpu")


def resolve_precision(precision: Precision, device: "torch.device") -> Precision:
    """Return the precision that is used on `device` if the catalog requests `precision`.

    On a CPU, float16 is replaced with bfloat16, or with float32 if bfloat16 matrix products are slow.
    On a GPU, int4 is replaced with float16, because only CPUs multiply int4 weights. On a GPU that does not multiply
    bfloat16, bfloat16 is replaced with float16 too.
    """
    if device.type == "cuda" and (precision == "int4" or precision == "bfloat16" and not gpu_multiplies_bfloat16()):
        return "float16"
    if precision == "float16" and device.type == "cpu":
        return "bfloat16" if cpu_multiplies_bfloat16() else "float32"
    return precision


def activation_dtype(precision: Precision, device: "torch.device") -> "torch.dtype":
    """Return the dtype of activations, norms and embeddings.

    With quantised weights a GPU uses float16, the dtype of bitsandbytes' kernels. A CPU uses float32: it costs little
    compared with the quantised matrix products, and its rounding error is far below that of the weights.
    """
    import torch

    precision = resolve_precision(precision, device)
    if precision in ("bitsandbytes-int8", "int4"):
        return torch.float16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[precision]


def cpu_multiplies_bfloat16() -> bool:
    """Return True if compiled kernels or oneDNN multiply bfloat16 on this CPU. Without them, float32 is faster."""
    from inference_server.kernels.isa import choice  # imports llvmlite

    return choice.chosen() is not None or isa.multiplies_bfloat16()


def gpu_multiplies_bfloat16() -> bool:
    """Return False if this GPU's compute capability is below 8.0 (Turing, Volta). Returns True without a GPU."""
    import torch

    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0)


def cache_dtype(precision: Precision) -> "torch.dtype | None":
    """Return the dtype of keys and values in a CPU's KV cache, or None for the dtype of the activations.

    With quantised weights the activations are float32, which is more precise than keys and values need.
    """
    import torch

    narrow = precision in ("bitsandbytes-int8", "int4") and cpu_multiplies_bfloat16()
    return torch.bfloat16 if narrow else None
