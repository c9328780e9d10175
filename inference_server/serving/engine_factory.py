"""An engine for a model: Tailrace's own or vLLM's, as large as the settings and the memory allow."""

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from inference_server.attention.kv_cache import CPU_BLOCK_SIZE, CUDA_BLOCK_SIZE
from inference_server.engine.admission import Room
from inference_server.engine.native.engine import Engine
from inference_server.engine.native.scheduler import Policy
from inference_server.engine.vllm.client import VllmClient, end_unfinished
from inference_server.engine.vllm.engine import VllmEngine
from inference_server.engine.vllm.engine_args import engine_arguments
from inference_server.model.runner import ModelRunner
from inference_server.precision import Precision, cache_dtype
from inference_server.serving.catalog import EngineName, Weights
from inference_server.settings import Settings
from inference_server.weights.loader import progress, total_memory_bytes
from inference_server.weights.prepare import Described, Prepared
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Key:
    """What makes two entries share an engine."""

    weights: Weights
    precision: Precision  # in force
    engine: EngineName
    arguments: str  # of the engine, as JSON


async def own_engine(
    key: Key,
    loaded: Prepared,
    max_len: int,
    end_ids: set[int],
    settings: Settings,
    device: torch.device,
    memory_share: float,
    on_broken: Callable[[], None],
) -> Engine:
    """`max_len`: tokens of the longest sequence; `memory_share`: of a GPU's free memory, what the KV cache may take.

    Raises ConfigurationError, UnsupportedModel, and what torch raises when memory runs out.
    """
    block_size = CUDA_BLOCK_SIZE if device.type == "cuda" else CPU_BLOCK_SIZE
    runner = ModelRunner(
        loaded.model,
        num_blocks=_num_blocks(block_size, max_len, settings, loaded, device, memory_share),
        block_size=block_size,
        max_len=max_len,
        invariant_rows=settings.max_running_seqs if settings.batch_invariant else None,
        cache_dtype=cache_dtype(key.precision) if device.type == "cpu" else None,
    )
    await in_daemon_thread(runner.probe)
    logger.info(
        "%s as %s on %s: weights %.2f GiB, KV cache up to %.2f GiB (%d tokens) of %.1f GiB memory",
        key.weights,
        key.precision,
        device,
        loaded.num_bytes / _GIB,
        runner.cache.num_bytes / _GIB,
        runner.cache.num_tokens,
        total_memory_bytes(device) / _GIB,
    )
    return Engine(
        runner,
        end_ids=end_ids,
        policy=_policy(settings),
        room=_room(settings),
        max_unused_blocks=0 if settings.prefix_cache == "off" else settings.prefix_cache_tokens // block_size,
        on_broken=on_broken,
    )


async def vllm_engine(
    key: Key,
    loaded: Described,
    max_len: int,
    end_ids: set[int],
    settings: Settings,
    on_broken: Callable[[], None],
) -> VllmEngine:
    """`max_len`: tokens of the longest sequence. Raises UnsupportedModel."""
    arguments = engine_arguments(loaded.folder, key.precision, max_len, json.loads(key.arguments), settings)
    scope_by_account = settings.prefix_cache == "account"
    with progress(f"starting vLLM with {key.weights} as {key.precision}", every_seconds=10.0):
        try:
            client = await in_daemon_thread(partial(VllmClient, arguments, end_ids, scope_by_account=scope_by_account))
        except asyncio.CancelledError:
            end_unfinished()
            raise
    logger.info("%s as %s in vLLM: %d blocks of KV cache", key.weights, key.precision, client.num_blocks)
    return VllmEngine(client, room=_room(settings), on_broken=on_broken)


async def in_daemon_thread(function: Callable[[], _Result]) -> _Result:
    """Like asyncio.to_thread, but a signal during a long load need not wait for its end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def finish(result: _Result | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await future


def _policy(settings: Settings) -> Policy:
    return Policy(
        max_running_seqs=settings.max_running_seqs,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        idle_chunk_tokens=max(settings.prefill_idle_tokens, settings.prefill_chunk_tokens),
        batch_invariant=settings.batch_invariant,
        scope_by_account=settings.prefix_cache == "account",
        max_account_seqs=settings.max_account_seqs,
    )


def _room(settings: Settings) -> Room:
    return Room(
        slots=settings.max_running_seqs,
        waiting_seqs=settings.max_waiting_seqs,
        waiting_tokens=settings.max_waiting_tokens,
        account_slots=settings.max_account_seqs,
    )


def _num_blocks(
    block_size: int, window: int, settings: Settings, loaded: Prepared, device: torch.device, memory_share: float
) -> int:
    """Blocks of the KV cache; raises ConfigurationError if they do not hold the longest sequence."""
    blocks_per_window = -(-window // block_size)
    tokens = settings.kv_cache_tokens
    setting = f"TAILRACE_KV_CACHE_TOKENS={tokens}"
    if tokens is None and device.type == "cuda":
        tokens = _free_tokens(loaded, memory_share)
        setting = f"the GPU's free memory ({tokens} tokens of KV cache)"
    if tokens is None:
        return blocks_per_window * settings.max_running_seqs
    if tokens // block_size < blocks_per_window:
        raise ConfigurationError(f"{setting} holds no sequence of {window} tokens, the longest that the catalog allows")
    return min(tokens // block_size, blocks_per_window * settings.max_running_seqs)


def _free_tokens(loaded: Prepared, memory_share: float) -> int:
    """Tokens whose keys and values fit this group's share of the GPU's free memory, a tenth of it left for activations."""
    config = loaded.model.config.get_text_config()
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_token: int = 2 * config.num_hidden_layers * num_heads * head_dim * loaded.model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(loaded.model.device)
    return int(0.9 * free * memory_share) // bytes_per_token
