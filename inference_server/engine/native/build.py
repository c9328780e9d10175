"""Builds Tailrace's own engine: loads the model into this process and sizes the KV cache (implements EngineBuilder)."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from inference_server.attention.kv_cache import BLOCK_SIZE
from inference_server.attention.rope import RopeChoice
from inference_server.engine.daemon_thread import in_daemon_thread
from inference_server.engine.native.engine import Engine
from inference_server.engine.native.sampler import Sample
from inference_server.engine.native.scheduling.step_plan import Policy
from inference_server.engine.native.speculation.build import drafting_of, with_draft_model
from inference_server.engine.native.step_rows import Logits, sample_tokens
from inference_server.engine.spec import EngineKey, EngineSpec
from inference_server.kernels.jit.openmp import use_one_thread
from inference_server.lora.adapter import read_adapter
from inference_server.model.runner import ModelRunner
from inference_server.precision import cache_dtype
from inference_server.progress import progress
from inference_server.settings.server import Settings
from inference_server.weights.loader import total_memory_bytes
from inference_server.weights.prepare import PreparedModel, prepare
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)

_GIB = 2**30


def load(key: EngineKey, device: torch.device, settings: Settings) -> PreparedModel:
    """Load the weights or read their packed form, and load the adapters and the draft model.

    Raises:
        ConfigurationError: One of them cannot be used.
    """
    # The adapters are read first, so that an error in one of them is reported before the weights are loaded.
    adapters = tuple(read_adapter(folder, device) for folder in key.adapters)
    if adapters:
        num_mb = sum(each.num_bytes for each in adapters) / 1e6
        logger.info("read %d LoRA adapters of %s: %.0f MB", len(adapters), key.weights, num_mb)
    model = prepare(key.weights, key.precision, device, settings, RopeChoice(key.rope, key.num_tokens))
    num_bytes = model.num_bytes + sum(each.num_bytes for each in adapters)
    return with_draft_model(replace(model, adapters=adapters, num_bytes=num_bytes), key, device, settings)


async def build(spec: EngineSpec[PreparedModel], sample: Callable[[Logits], list[Sample]] = sample_tokens) -> Engine:
    """Compile the model's forward passes, check one of them, and start the engine. `sample`: see StepLoop.

    Raises:
        ConfigurationError: The KV cache cannot hold the longest sequence, or the draft model's window is too short.
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
        adapters=model.adapters,
    )
    with progress(f"compiling and checking {key.weights} as {key.precision}", is_brief=True):
        await in_daemon_thread(runner.probe)
        await in_daemon_thread(runner.record_graphs)
        drafting = await in_daemon_thread(partial(drafting_of, spec, runner))
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
        policy=_scheduler_policy(settings, device),
        limits=spec.capacity_limits(),
        max_unused_blocks=0 if settings.prefix_cache == "off" else settings.prefix_cache_tokens // BLOCK_SIZE,
        on_broken=spec.on_broken,
        sample=sample,
        drafting=drafting,
        on_thread=use_one_thread if settings.deterministic and runner.depends_on_threads else _nothing,
    )


def _nothing() -> None:
    """Do nothing: the `on_thread` of an engine that may use several threads."""


def _scheduler_policy(settings: Settings, device: torch.device) -> Policy:
    prefill = settings.prefill_tokens(device.type)
    return Policy(
        max_running_seqs=settings.max_running_seqs,
        prefill_chunk_tokens=prefill.chunk,
        idle_chunk_tokens=prefill.idle,
        batch_invariant=settings.batch_invariant,
        scope_by_account=settings.prefix_cache == "account",
        max_account_seqs=settings.max_account_seqs,
        max_batch_seqs=settings.batch_seqs(device.type),
    )


def _num_blocks(spec: EngineSpec[PreparedModel], block_size: int) -> int:
    """Return the number of KV cache blocks. Raises ConfigurationError if they cannot hold the longest sequence."""
    blocks_per_sequence = -(-spec.max_len // block_size)
    most = blocks_per_sequence * spec.settings.max_running_seqs
    wanted = spec.settings.kv_cache_tokens
    tokens = spec.cache_tokens if wanted is None else wanted
    if tokens is None:
        return most
    if tokens // block_size < blocks_per_sequence:
        setting = "the free memory" if wanted is None else f"TAILRACE_KV_CACHE_TOKENS={wanted}"
        raise ConfigurationError(
            f"{setting} is too small for a sequence of {spec.max_len} tokens, the longest that the catalog allows: "
            "lower context_length or sequence_length in the catalog, or make the KV cache larger"
        )
    return min(tokens // block_size, most)
