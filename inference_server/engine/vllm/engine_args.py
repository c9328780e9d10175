"""Converts a catalog entry and the settings to vLLM's engine arguments. Does not import vLLM."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from inference_server.errors import UnsupportedModel
from inference_server.lora.config import read_config
from inference_server.precision import Precision
from inference_server.settings.server import Settings

_VLLM_RANKS = (8, 16, 32, 64, 128, 256)  # values that vLLM accepts for max_lora_rank
_MAX_ADAPTERS_AT_ONCE = 16  # adapters of one batch in vLLM, which reserves GPU memory for each
_DTYPES = ("float32", "float16", "bfloat16")
# Arguments that the catalog must not contain. The value names what determines the argument: a key of the catalog, a
# setting, inference.proto ("the contract") or the server.
_DECIDED = {
    "model": "`source`",
    "tokenizer": "`source`",
    "revision": "`source`",
    "tokenizer_revision": "`source`",
    "dtype": "`precision`",
    "max_model_len": "`context_length` and `sequence_length`",
    "served_model_name": "`name`",
    "max_num_seqs": "TAILRACE_MAX_RUNNING_SEQS",
    "enable_prefix_caching": "TAILRACE_PREFIX_CACHE",
    "max_logprobs": "the contract",
    "logprobs_mode": "the contract",
    "generation_config": "the contract",
    "structured_outputs_config": "the contract",
    "skip_tokenizer_init": "the contract",
    "disable_log_stats": "the server, which needs them for its metrics",
    "trust_remote_code": "the server, which runs no code of a model",
}


def engine_arguments(
    folder: Path, precision: Precision, max_len: int, extra: Mapping[str, Any], settings: Settings
) -> dict[str, Any]:
    """Return the keyword arguments of vLLM's AsyncEngineArgs.

    Args:
        folder: Folder of the model.
        precision: Precision in use.
        max_len: Longest sequence, prompt and reply together, in tokens.
        extra: Arguments from the catalog.
        settings: Settings of the server.

    Raises:
        UnsupportedModel: vLLM does not support the precision or a setting, or the catalog sets an argument that it
            must not set.
    """
    if precision not in _DTYPES:
        raise UnsupportedModel(
            f'engine = "vllm" does not support precision "{precision}": use one of {", ".join(_DTYPES)} '
            "(for smaller weights use a source that is quantised with GPTQ or AWQ)"
        )
    if settings.batch_invariant:
        raise UnsupportedModel('TAILRACE_BATCH_INVARIANT is not supported by engine = "vllm": unset it')
    for name in extra:
        if name in _DECIDED:
            raise UnsupportedModel(f"[models.vllm] {name} is decided by {_DECIDED[name]}: leave it out")
    return {
        "load_format": "safetensors",  # unpickling weights could run code
        **extra,
        "model": str(folder),
        "tokenizer": str(folder),
        "dtype": precision,
        "max_model_len": max_len,
        "max_num_seqs": settings.max_running_seqs,
        "enable_prefix_caching": settings.prefix_cache != "off",
        "max_logprobs": -1,  # grpc_api/validation.py checks the limit
        "logprobs_mode": "raw_logprobs",
        # vLLM must not apply the model's sampling defaults, because grpc_api/sampling.py applies them.
        "generation_config": "vllm",
        "structured_outputs_config": {"backend": "guidance"},
        "disable_log_stats": True,  # stops vLLM's own log output; step_stats.py still gets vLLM's statistics
    }


def adapter_arguments(adapters: Sequence[Path]) -> dict[str, Any]:
    """Return vLLM's engine arguments for LoRA adapters.

    The catalog may override them. `adapters`: folders of adapters.
    """
    if not adapters:
        return {}
    largest = max(read_config(folder).largest_rank for folder in adapters)
    rank = next((rank for rank in _VLLM_RANKS if rank >= largest), largest)
    return {"enable_lora": True, "max_loras": min(len(adapters), _MAX_ADAPTERS_AT_ONCE), "max_lora_rank": rank}


def check_names(extra: Collection[str], known: Collection[str]) -> None:
    """Raise UnsupportedModel for an argument that the installed vLLM does not accept."""
    for name in extra:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise UnsupportedModel(f"[models.vllm] {name} is not an engine argument of this vLLM{hint}")
