"""Plans a GPU's memory: collects the engines' demands, and measures the free memory. gpu/memory.py divides it."""

import logging
from collections.abc import Mapping, Sequence

import torch

from inference_server.attention.kv_cache import BLOCK_SIZE
from inference_server.attention.rope import RopeChoice
from inference_server.attention.rope import window as rope_window
from inference_server.engine.spec import EngineKey
from inference_server.gpu.memory import GIB, EngineDemand, least_needs, plan
from inference_server.gpu.paths import has_fused_layers
from inference_server.serving.catalog import CatalogEntry
from inference_server.serving.engine_groups import window
from inference_server.settings.server import Settings
from inference_server.weights.download import naming_source
from inference_server.weights.sizes import model_sizes, read_config

logger = logging.getLogger(__name__)


def engine_demand(
    key: EngineKey, group: Sequence[CatalogEntry], settings: Settings, *, may_fetch: bool = True
) -> EngineDemand | None:
    """Return the demand of one engine of this process for the GPU's memory.

    Args:
        key: Properties that the engine's entries have in common.
        group: The entries.
        settings: The server's settings.
        may_fetch: True to download a missing configuration, or to convert weights that have no configuration yet. False
            to return None instead.

    Raises:
        ConfigurationError: The configuration cannot be read.
    """
    config = read_config(key.weights, settings.cache_dir, may_fetch=may_fetch)
    if config is None:
        return None
    with naming_source(key.weights):
        RopeChoice(key.rope).apply(config)
        longest = rope_window(config.get_text_config())
        sizes = model_sizes(config)
    return EngineDemand(
        name=" + ".join(entry.name for entry in group),
        can_fuse=has_fused_layers(config),
        sizes=sizes,
        precision=key.precision,
        max_len=max(window(entry, longest) for entry in group),
        max_running_seqs=settings.max_running_seqs,
        chunk_tokens=settings.prefill_tokens("cuda").idle,
        kv_cache_tokens=settings.kv_cache_tokens,
        block_size=BLOCK_SIZE,
    )


def fitting_demands(
    groups: Mapping[EngineKey, Sequence[CatalogEntry]], settings: Settings, device: torch.device
) -> dict[EngineKey, EngineDemand]:
    """Return the demands of Tailrace's own engines, after a check that they fit into the memory that is free now.

    vLLM's processes plan their memory themselves.

    Raises:
        ConfigurationError: The engines do not fit, or a configuration cannot be read.
    """
    demands: dict[EngineKey, EngineDemand] = {}
    for key, group in groups.items():
        if key.engine == "tailrace" and (demand := engine_demand(key, group, settings)) is not None:
            demands[key] = demand
    plan(free_bytes(device), list(demands.values()))
    return demands


def divide_free_memory(demands: Mapping[EngineKey, EngineDemand], device: torch.device) -> dict[EngineKey, int]:
    """Return the size of each engine's KV cache in tokens. The weights of all engines must already be loaded.

    Raises:
        ConfigurationError: Less memory is free than the smallest caches need.
    """
    free = free_bytes(device)
    tokens = dict(zip(demands, plan(free, list(demands.values()), has_weights=True), strict=True))
    needs = least_needs(free, list(demands.values()), has_weights=True)
    logger.info(
        "GPU memory after loading the weights: %.2f GiB free, %.2f GiB of it for activations, CUDA graphs and fragmentation",
        free / GIB,
        (needs.working + needs.margin) / GIB,
    )
    return tokens


def free_bytes(device: torch.device) -> int:
    """Return the GPU's free memory in bytes, including memory that torch's allocator has reserved but does not use."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
