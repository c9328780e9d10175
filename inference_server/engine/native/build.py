"""Builds Tailrace's own engine: loads the model into this process and sizes the KV cache (implements EngineBuilder)."""

import logging
from collections.abc import Callable

import torch

from inference_server.attention.kv_cache import BLOCK_SIZE
from inference_server.engine.daemon_thread import in_daemon_thread
from inference_server.engine.native.engine import Engine
from inference_server.engine.native.sampler import Sample
from inference_server.engine.native.scheduler import Policy
from inference_server.engine.native.step_loop import Logits, sample_tokens
from inference_server.engine.spec import EngineKey, EngineSpec
from inference_server.model.runner import ModelRunner
from inference_server.precision import cache_dtype
from inference_server.settings import Settings
from inference_server.weights.loader import total_memory_bytes
from inference_server.weights.prepare import PreparedModel, prepare
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)

_GIB = 2**30
# Share of the free memory that the KV cache may take; the rest is for activations.
_CACHE_SHARE = 0.9


def load(key: EngineKey, device: torch.device, settings: Settings) -> PreparedModel:
    """Load the weights, or read them in packed form. Raises ConfigurationError."""
    return prepare(key.weights, key.precision, device, settings)


async def build(spec: EngineSpec[PreparedModel], sample: Callable[[Logits], list[Sample]] = sample_tokens) -> Engine:
    """Start the engine after one forward pass as a check. `sample`: see StepLoop.

    Raises:
        ConfigurationError: The KV cache does not hold the longest sequence.
        UnsupportedModel: The architecture is not supported.
        RuntimeError: The memory ran out.
    """
    key, model, settings, device = spec.key, spec.model, spec.settings, spec.device
    runner = ModelRunner(
        model.model,
        num_blocks=_num_blocks(spec, BLOCK_SIZE),
        max_len=spec.max_len,
        max_seqs=settings.max_running_seqs,
        invariant_rows=settings.max_running_seqs if settings.batch_invariant else None,
        cache_dtype=cache_dtype(key.precision) if device.type == "cpu" else None,
    )
    await in_daemon_thread(runner.probe)
    await in_daemon_thread(runner.record_graphs)
    logger.info(
        "%s as %s on %s: weights %.2f GiB, KV cache up to %.2f GiB (%d tokens) of %.1f GiB memory",
        key.weights,
        key.precision,
        device,
        model.num_bytes / _GIB,
        runner.cache.num_bytes / _GIB,
        runner.cache.num_tokens,
        total_memory_bytes(device) / _GIB,
    )
    return Engine(
        runner,
        end_ids=spec.end_ids,
        policy=_scheduler_policy(settings),
        limits=spec.capacity_limits(),
        max_unused_blocks=0 if settings.prefix_cache == "off" else settings.prefix_cache_tokens // BLOCK_SIZE,
        on_broken=spec.on_broken,
        sample=sample,
    )


def _scheduler_policy(settings: Settings) -> Policy:
    return Policy(
        max_running_seqs=settings.max_running_seqs,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        idle_chunk_tokens=max(settings.prefill_idle_tokens, settings.prefill_chunk_tokens),
        batch_invariant=settings.batch_invariant,
        scope_by_account=settings.prefix_cache == "account",
        max_account_seqs=settings.max_account_seqs,
    )


def _num_blocks(spec: EngineSpec[PreparedModel], block_size: int) -> int:
    """Return the blocks of the KV cache. Raises ConfigurationError if they do not hold the longest sequence."""
    blocks_per_sequence = -(-spec.max_len // block_size)
    most = blocks_per_sequence * spec.settings.max_running_seqs
    tokens = spec.settings.kv_cache_tokens
    setting = f"TAILRACE_KV_CACHE_TOKENS={tokens}"
    if tokens is None and spec.device.type == "cuda":
        tokens = _free_tokens(spec.model, spec.memory_share)
        setting = f"the GPU's free memory ({tokens} tokens of KV cache)"
    if tokens is None:
        return most
    if tokens // block_size < blocks_per_sequence:
        raise ConfigurationError(
            f"{setting} is too small for a sequence of {spec.max_len} tokens, the longest that the catalog allows: "
            "lower context_length or sequence_length in the catalog, or make the KV cache larger"
        )
    return min(tokens // block_size, most)


def _free_tokens(model: PreparedModel, memory_share: float) -> int:
    """Return the tokens whose keys and values fit into a share of the GPU's free memory."""
    config = model.model.config.get_text_config()
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_token: int = 2 * config.num_hidden_layers * num_heads * head_dim * model.model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(model.model.device)
    return int(_CACHE_SHARE * free * memory_share) // bytes_per_token
