"""Loads the models of the catalog and starts their engines.

Entries with the same weights, precision and engine arguments share one engine: the weights are loaded once, and their
requests run in one batch.
"""

import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from inference_server.engine.daemon_thread import in_daemon_thread
from inference_server.engine.spec import EngineBuilder, EngineKey, EngineModel, EngineSpec
from inference_server.errors import TailraceError, UnsupportedModel, first_line
from inference_server.generation import Completed, GenerationRequest, SamplingParams
from inference_server.precision import choose_device, resolve_precision
from inference_server.progress import progress
from inference_server.serving.catalog import CatalogEntry, builtin_template
from inference_server.serving.engine_factory import BUILDERS, EngineName, GetBuilder
from inference_server.serving.hosted_model import HostedModel
from inference_server.settings import Settings
from inference_server.text.grammar import Grammars
from inference_server.text.prompt_encoder import PromptEncoder
from inference_server.text.tool_formats import detect_tool_format
from inference_server.weights.model_info import ModelInfo
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)


async def load_all(
    entries: list[CatalogEntry],
    settings: Settings,
    on_broken: Callable[[], None],
    builders: Mapping[EngineName, GetBuilder] = BUILDERS,
) -> dict[str, HostedModel]:
    """Load every entry, start the engines, and generate a few tokens with each engine.

    Args:
        entries: The catalog's entries.
        settings: The server's settings.
        on_broken: Called when an engine has failed and cannot continue.
        builders: Returns the builder of each engine; tests replace them.

    Returns:
        The loaded models by name, in the order of `entries`.

    Raises:
        ConfigurationError: An entry cannot be served; the message names it.
    """
    device = choose_device(settings.device)
    groups: dict[EngineKey, list[CatalogEntry]] = {}
    for entry in entries:
        groups.setdefault(_key(entry, device), []).append(entry)
    hosted: dict[str, HostedModel] = {}
    for number, (key, group) in enumerate(groups.items()):
        share = 1 / (len(groups) - number)
        try:
            builder = await in_daemon_thread(builders[group[0].engine])
            for model in await _load_group(builder, group, settings, device, share, on_broken):
                hosted[model.entry.name] = model
        except (UnsupportedModel, TailraceError) as error:
            raise ConfigurationError(f"{group[0].name} ({key.weights}) cannot be served: {error}") from error
        except (RuntimeError, MemoryError) as error:
            logger.debug("loading %s failed", key.weights, exc_info=True)
            raise ConfigurationError(
                f"{group[0].name} ({key.weights}) cannot be served: {first_line(error)}; "
                "if memory is short, lower TAILRACE_MAX_RUNNING_SEQS or TAILRACE_KV_CACHE_TOKENS"
            ) from error
    return {entry.name: hosted[entry.name] for entry in entries}


async def _load_group(
    builder: EngineBuilder[Any],
    group: list[CatalogEntry],
    settings: Settings,
    device: torch.device,
    memory_share: float,
    on_broken: Callable[[], None],
) -> list[HostedModel]:
    """Load the entries that share one engine.

    Args:
        builder: Builder of the engine.
        group: The entries.
        settings: The server's settings.
        device: Device of the native engine.
        memory_share: Share of the GPU's free memory that the KV cache may take, above 0 to 1.
        on_broken: Called when the engine has failed and cannot continue.
    """
    key = _key(group[0], device)
    loaded: EngineModel = await in_daemon_thread(partial(builder.load, key, device, settings))
    windows = [_window(entry, loaded.info) for entry in group]
    prompts = await in_daemon_thread(lambda: [_encoder(entry, loaded, settings) for entry in group])
    end_ids = await in_daemon_thread(lambda: _end_ids(loaded, prompts))
    engine = await builder.build(
        EngineSpec(
            key=key,
            model=loaded,
            max_len=max(windows),
            end_ids=end_ids,
            settings=settings,
            device=device,
            memory_share=memory_share,
            on_broken=on_broken,
        )
    )
    grammars = Grammars(loaded.tokenizer, engine.vocab_size)
    models = [
        HostedModel(
            entry,
            key.precision,
            window,
            encoder,
            engine,
            grammars,
            entry.tool_format or detect_tool_format(encoder.template),
        )
        for entry, window, encoder in zip(group, windows, prompts, strict=True)
    ]
    with progress(f"warming up {key.weights} as {key.precision}"):
        await _warm_up(models[0])
    for model in models:
        if model.entry.stands_in:
            logger.warning("%s is served by a substitute model: %s", model.entry.name, model.entry.weights)
    return models


def _key(entry: CatalogEntry, device: torch.device) -> EngineKey:
    arguments = json.dumps(dict(entry.vllm), sort_keys=True)
    return EngineKey(entry.weights, resolve_precision(entry.precision, device), entry.engine, arguments)


def _window(entry: CatalogEntry, info: ModelInfo) -> int:
    """Return the longest prompt and reply together, in tokens: the sum of the entry's limits, or the model's own window."""
    wanted = entry.context_length + entry.sequence_length
    return min(wanted, info.max_tokens or wanted)


def _encoder(entry: CatalogEntry, loaded: EngineModel, settings: Settings) -> PromptEncoder:
    template = entry.chat_template
    if template is None and loaded.tokenizer.chat_template is None and loaded.info.model_type == "llama":
        template = builtin_template("llama-2")
        logger.warning(
            "%s has no chat template: Llama 2's is used, with [INST] around each question. If the model was trained with "
            'another one, set chat_template in the catalog to its file; chat_template = "llama-2" confirms this one',
            entry.name,
        )
    encoder = PromptEncoder(loaded.tokenizer, chat_template=template, raw_control_tokens=settings.raw_control_tokens)
    if not encoder.has_chat_template:
        logger.warning(
            "%s has no chat template: only raw prompts work. Set chat_template in the catalog to a template's file",
            entry.name,
        )
    return encoder


def _end_ids(loaded: EngineModel, prompts: list[PromptEncoder]) -> frozenset[int]:
    """Return the tokens that end a reply, from the generation config, the tokenizer and the chat template."""
    ids = {*loaded.info.end_ids, loaded.tokenizer.eos_token_id}
    return frozenset(i for i in ids if i is not None).union(*(encoder.end_of_turn_ids() for encoder in prompts))


async def _warm_up(model: HostedModel) -> None:
    """Generate three tokens, from the prompt to the text. Raises ConfigurationError if the reply has another length."""
    request = GenerationRequest(
        request_id="warm-up",
        prompt_ids=model.prompts.encode_text("Hello"),
        sampling=SamplingParams(seed=1, ignore_eos=True, logprobs=1),
        max_tokens=3,
    )
    async with model.submit(request) as reply:
        async for event in reply:
            if isinstance(event, Completed) and event.usage.completion_tokens != 3:
                raise ConfigurationError(
                    f"{model.entry.name}: the warm-up generated {event.usage.completion_tokens} tokens"
                )
