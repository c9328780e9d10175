"""A catalog entry in the words of vLLM's engine arguments. Knows names and numbers; imports nothing of vLLM."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from inference_server.errors import UnsupportedModel
from inference_server.precision import Precision
from inference_server.settings import Settings

_DTYPES = ("float32", "float16", "bfloat16")
# Arguments that follow from something else, and from what.
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
    """Keyword arguments of vLLM's AsyncEngineArgs. `max_len`: tokens of the longest sequence; `extra`: the catalog's.

    Raises UnsupportedModel for what vLLM cannot do or the catalog may not say.
    """
    if precision not in _DTYPES:
        raise UnsupportedModel(
            f'engine = "vllm" has no precision "{precision}": take one of {", ".join(_DTYPES)} '
            "(and for smaller weights a source that holds them quantised, as GPTQ or AWQ)"
        )
    if settings.batch_invariant:
        raise UnsupportedModel('TAILRACE_BATCH_INVARIANT is not kept by engine = "vllm": unset it')
    for name in extra:
        if name in _DECIDED:
            raise UnsupportedModel(f"[models.vllm] {name} is decided by {_DECIDED[name]}: leave it out")
    return {
        "load_format": "safetensors",  # nothing is unpickled
        **extra,
        "model": str(folder),
        "tokenizer": str(folder),
        "dtype": precision,
        "max_model_len": max_len,
        "max_num_seqs": settings.max_running_seqs,
        "enable_prefix_caching": settings.prefix_cache != "off",
        "max_logprobs": -1,  # checks.py has the limit
        "logprobs_mode": "raw_logprobs",
        "generation_config": "vllm",  # a model's own sampling parameters are not the contract's defaults
        "structured_outputs_config": {"backend": "guidance"},
        "disable_log_stats": True,  # those it would print; what steps.py takes is not touched by it
    }


def check_names(extra: Collection[str], known: Collection[str]) -> None:
    """Raises UnsupportedModel for an argument that this vLLM does not have."""
    for name in extra:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise UnsupportedModel(f"[models.vllm] {name} is no engine argument of this vLLM{hint}")
