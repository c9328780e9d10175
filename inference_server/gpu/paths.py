"""Chooses how a model runs on a GPU: the operators of its layers, the product of its int8 weights, and CUDA graphs.

`tailrace doctor` predicts the path from the configuration with `choose_path`. The server reports the path in use. Both
are a GpuPath, and tests/rehearsal/test_short.py compares them.
"""

from dataclasses import dataclass
from typing import Any, Literal

from inference_server.attention.rope import rotates_partly
from inference_server.precision import Precision

# Decoders whose layers run as operators of gpu/ops.py, by the names of their classes in transformers.
FAMILIES = ("Granite", "Llama", "Mistral", "Phi3", "Qwen2", "Qwen3", "SeedOss", "SmolLM3")
SUPPORTED_ARCHITECTURES = frozenset(f"{family}ForCausalLM" for family in FAMILIES)
_SILU_NAMES = ("silu", "swish")


@dataclass(frozen=True, slots=True)
class GpuPath:
    """The way in which a model runs on a GPU.

    Attributes:
        layers: "fused" if layers run as operators of gpu/ops.py on stacked weights, "modules" if transformers' own
            modules run.
        int8: The product of int8 weights: this server's weight-only "kernels", or modules of "bitsandbytes"; None
            without int8 weights.
        has_triton: True if Triton kernels compute the operators; False for torch's operations.
        records_graphs: True if decode passes are recorded as CUDA graphs.
    """

    layers: Literal["fused", "modules"]
    int8: Literal["kernels", "bitsandbytes"] | None
    has_triton: bool
    records_graphs: bool

    def __str__(self) -> str:
        """Return a phrase for the log and the report."""
        kernels = "Triton kernels" if self.has_triton else "torch's operations"
        parts = [
            f"fused decoder layers by {kernels}"
            if self.layers == "fused"
            else f"modules of transformers, attention by {kernels}"
        ]
        if self.int8 is not None:
            parts.append("int8 product of this server" if self.int8 == "kernels" else "int8 product of bitsandbytes")
        parts.append("CUDA graphs" if self.records_graphs else f"no CUDA graphs{self._why_no_graphs}")
        return ", ".join(parts)

    @property
    def _why_no_graphs(self) -> str:
        # With Triton, bitsandbytes computes only layers that separate outliers.
        has_threshold = self.int8 == "bitsandbytes" and self.has_triton
        return ", because TAILRACE_INT8_THRESHOLD is above 0" if has_threshold else ""


def has_fused_layers(config: Any) -> bool:
    """Return True if the layers of a model with this transformers configuration can run as operators of gpu/ops.py."""
    return (
        not SUPPORTED_ARCHITECTURES.isdisjoint(getattr(config, "architectures", None) or [])
        and config.hidden_act in _SILU_NAMES
        and not rotates_partly(config)
    )


def choose_path(can_fuse: bool, precision: Precision, *, int8_threshold: float, has_triton: bool) -> GpuPath:
    """Return the way in which a model runs on a GPU.

    Args:
        can_fuse: True if the model's layers can run as operators of gpu/ops.py (see has_fused_layers).
        precision: Precision in use on the device (see precision.resolve_precision).
        int8_threshold: Outlier threshold of bitsandbytes. Above 0, bitsandbytes' product makes the host wait for the
            device, and a CUDA graph cannot record such a wait.
        has_triton: True if Triton can run here (see triton_support).
    """
    is_int8 = precision == "bitsandbytes-int8"
    keeps_bitsandbytes = is_int8 and (int8_threshold > 0 or not has_triton)
    return GpuPath(
        layers="fused" if can_fuse and not keeps_bitsandbytes else "modules",
        int8=("bitsandbytes" if keeps_bitsandbytes else "kernels") if is_int8 else None,
        has_triton=has_triton,
        records_graphs=not (is_int8 and int8_threshold > 0),
    )
