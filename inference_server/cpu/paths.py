"""Describes how a model runs on a CPU: the instruction set, and the forward passes that run as kernel programs.

`tailrace doctor` predicts the path from the configuration with `predicted_path`. The server reports the path in use. Both
are a CpuPath, and tests/inference_server/cpu/test_paths.py compares them.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from inference_server.attention.kv_cache import BLOCK_SIZE
from inference_server.attention.rope import rotates_partly
from inference_server.cpu.decoder_weights import MODELS, is_power_of_two
from inference_server.cpu.forward import CpuForward
from inference_server.cpu.linear.backends import choose_backend
from inference_server.cpu.linear.kernel_linear import WeightFormat
from inference_server.cpu.linear.torch_backend import TorchBackend
from inference_server.kernels import ops
from inference_server.kernels.isa import choice
from inference_server.precision import Precision, activation_dtype, cache_dtype

_SILU_NAMES = ("silu", "swish")
_FORMATS: dict[Precision, WeightFormat] = {"bfloat16": "bf16", "bitsandbytes-int8": "int8", "int4": "int4"}
_HEAD_FORMATS: dict[Precision, WeightFormat] = {**_FORMATS, "int4": "int8"}
_OUTPUTS = 32  # outputs of a work item of a linear kernel; kernel programs require multiples of it
_CPU = torch.device("cpu")

# Reasons why only decoded tokens run as a kernel program.
_WINDOWS = "its attention has sliding windows"
_NO_PREFILL = "no kernel attends over the keys of its prompts"


@dataclass(frozen=True, slots=True)
class CpuPath:
    """The way in which a model runs on a CPU.

    Attributes:
        instruction_set: The name of the kernels' instruction set; None if torch's operations replace the kernels.
        program: The forward passes that run as kernel programs: those of all tokens, of decoded tokens only, or none.
            The other passes run transformers' modules one by one.
        reason: The reason why `program` is not "all", as a clause; "" otherwise.
    """

    instruction_set: str | None
    program: Literal["all", "decode", "none"]
    reason: str = ""

    def __str__(self) -> str:
        """Return a phrase for the log and the report."""
        kernels = f"kernels for {self.instruction_set}" if self.instruction_set else "torch's operations"
        layers = {
            "all": "one program of compiled kernels",
            "decode": "one program of compiled kernels for decoded tokens, modules of transformers for prompts",
            "none": "modules of transformers",
        }[self.program]
        return f"{kernels}, {layers}" + (f" ({self.reason})" if self.reason else "")


def path_in_use(forward: CpuForward | None, reason: str) -> CpuPath:
    """Return the path of a model that this process runs.

    Args:
        forward: The model's kernel programs; None if there are none.
        reason: The reason why there are none, as a clause.
    """
    if forward is None:
        return _path("none", reason)
    if forward.supports_prefill:
        return _path("all")
    return _path("decode", _WINDOWS if forward.has_windows else _NO_PREFILL)


def predicted_path(config: Any, precision: Precision) -> CpuPath:
    """Return the path of a model with this transformers configuration, without its weights.

    Args:
        config: The configuration.
        precision: The precision in use on the CPU (see precision.resolve_precision).
    """
    reason = _refusal(config, precision)
    if reason:
        return _path("none", reason)
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        return _path("decode", _WINDOWS)
    dtype = activation_dtype(precision, _CPU)
    keys = torch.empty(
        1, BLOCK_SIZE, config.num_key_value_heads, _head_dim(config), dtype=cache_dtype(precision) or dtype
    )
    if ops.prefill_attention_kernel(dtype, keys) is None:
        return _path("decode", _NO_PREFILL)
    return _path("all")


def _path(program: Literal["all", "decode", "none"], reason: str = "") -> CpuPath:
    isa = choice.chosen()
    return CpuPath(isa.name if isa else None, program, choice.obstacle() or reason)


def _refusal(config: Any, precision: Precision) -> str:
    """Return the reason why no kernel program computes the model, as extract_weights states it, or ""."""
    if MODELS.isdisjoint(getattr(config, "architectures", None) or []):
        return "kernel programs do not support its architecture"
    if precision not in _FORMATS:
        return f"its linear layers have no compiled kernel, because no kernel multiplies {precision} weights"
    if config.hidden_act not in _SILU_NAMES or rotates_partly(config):
        return "its attention or MLP has no fused module"
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, _head_dim(config)
    inner = _inner_widths(config)
    formats = [(_FORMATS[precision], width) for width in (config.hidden_size, *inner, heads * head_dim)]
    if not all(_has_kernel(*each) for each in [*formats, (_HEAD_FORMATS[precision], config.hidden_size)]):
        return "its linear layers have no compiled kernel"
    if not all(choose_backend(*formats[0]).supports_gate(width) for width in inner):
        return "no kernel supports the width of its MLP"
    if any(count % _OUTPUTS for count in ((heads + 2 * kv_heads) * head_dim, config.hidden_size)):
        return "the outputs of its linear layers do not fill whole panels"
    if not is_power_of_two(getattr(config, "logits_scaling", None) or 1.0):
        return "kernel programs do not support the scaling of its logits"
    return ""


def _inner_widths(config: Any) -> list[int]:
    """Return the widths inside the MLPs and the experts of a model's layers."""
    width: int | None = getattr(config, "moe_intermediate_size", None)
    if width is None:
        return [config.intermediate_size]
    has_mlps = bool(getattr(config, "mlp_only_layers", None)) or getattr(config, "decoder_sparse_step", 1) > 1
    return [width, config.intermediate_size] if has_mlps else [width]


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _has_kernel(weight_format: WeightFormat, width: int) -> bool:
    return not isinstance(choose_backend(weight_format, width), TorchBackend)
