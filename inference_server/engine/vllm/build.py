"""Builds the engine that runs a model in vLLM's processes (implements EngineBuilder)."""

import asyncio
import json
import logging
from functools import partial

import torch

from inference_server.engine.daemon_thread import in_daemon_thread
from inference_server.engine.spec import EngineKey, EngineSpec
from inference_server.engine.vllm.client import VllmClient, check_installed, end_unfinished
from inference_server.engine.vllm.engine import VllmEngine
from inference_server.engine.vllm.engine_args import adapter_arguments, engine_arguments
from inference_server.lora.config import read_config
from inference_server.progress import progress
from inference_server.settings.server import Settings
from inference_server.weights.prepare import ModelDescription, describe

logger = logging.getLogger(__name__)


def load(key: EngineKey, device: torch.device, settings: Settings) -> ModelDescription:
    """Load the model's tokenizer and configuration. vLLM loads the weights in `build`.

    Raises:
        UnsupportedModel: vLLM is not installed.
        ConfigurationError: The files of the model or of an adapter cannot be read.
    """
    check_installed()
    for folder in key.adapters:
        read_config(folder)
    return describe(key.weights, settings)


async def build(spec: EngineSpec[ModelDescription]) -> VllmEngine:
    """Start vLLM's processes. Raises UnsupportedModel if vLLM rejects the model or its arguments."""
    key, settings = spec.key, spec.settings
    arguments = engine_arguments(spec.model.folder, key.precision, spec.max_len, json.loads(key.arguments), settings)
    arguments = {**adapter_arguments(key.adapters), **arguments}
    scope_by_account = settings.prefix_cache == "account"
    start = partial(VllmClient, arguments, spec.end_ids, scope_by_account=scope_by_account, adapters=key.adapters)
    with progress(f"starting vLLM with {key.weights} as {key.precision}", every_seconds=10.0):
        try:
            client = await in_daemon_thread(start)
        except asyncio.CancelledError:
            end_unfinished()
            raise
    logger.info("%s as %s in vLLM: %d blocks of KV cache", key.weights, key.precision, client.num_blocks)
    return VllmEngine(client, limits=spec.capacity_limits(), on_broken=spec.on_broken)
