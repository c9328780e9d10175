"""Loads the models of the catalog and starts their engines.

Entries with the same weights, precision and engine arguments share one engine. Their weights are loaded once, and
requests for any of these entries run in the same batch.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from inference_server.engine.base import BaseEngine
from inference_server.engine.daemon_thread import in_daemon_thread
from inference_server.engine.spec import EngineBuilder, EngineKey, EngineModel, EngineSpec
from inference_server.errors import TailraceError, UnsupportedModel, first_line
from inference_server.generation import Completed, GenerationRequest, SamplingParams
from inference_server.gpu.memory import EngineDemand
from inference_server.kernels.jit.cores import limit_threads
from inference_server.machine import available_memory_bytes, machine_memory_bytes, memory_bytes
from inference_server.precision import choose_device
from inference_server.progress import progress
from inference_server.serving.automatic import complete
from inference_server.serving.catalog import CatalogEntry, builtin_template
from inference_server.serving.cpu_plan import plan_caches
from inference_server.serving.embedder_startup import load_embedders
from inference_server.serving.engine_factory import BUILDERS, EngineName, GetBuilder
from inference_server.serving.engine_groups import group_entries, refuse_unsupported_models, window
from inference_server.serving.gpu_plan import divide_free_memory, fitting_demands
from inference_server.serving.hosted_embedder import HostedEmbedder
from inference_server.serving.hosted_model import HostedModel
from inference_server.settings.server import Settings
from inference_server.text.grammar import Grammars
from inference_server.text.prompt_encoder import PromptEncoder
from inference_server.text.reasoning.formats import FORMATS, ReasoningFormat
from inference_server.text.reasoning.model import ModelThoughts
from inference_server.text.tool_formats import detect_tool_format
from inference_server.weights.disk.atomic_folder import remove_leftovers
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A loaded model whose engine has not been started."""

    key: EngineKey
    group: list[CatalogEntry]
    builder: EngineBuilder[Any]
    model: EngineModel


async def load_all(
    entries: list[CatalogEntry],
    settings: Settings,
    on_broken: Callable[[], None],
    builders: Mapping[EngineName, GetBuilder] = BUILDERS,
) -> dict[str, HostedModel | HostedEmbedder]:
    """Load every entry, start the engines, and compute a first result with each engine.

    The embedding models are loaded at the same time as the others. The weights of all engines are loaded before any KV
    cache is allocated, because on a GPU the caches share the memory that is left.

    Args:
        entries: The catalog's entries.
        settings: The server's settings.
        on_broken: Called when an engine has failed and cannot continue.
        builders: A function for each engine that returns its builder; tests replace them.

    Returns:
        The loaded models by name, in the order of `entries`, without optional ones that cannot be served.

    Raises:
        ConfigurationError: An entry cannot be served, or the models do not fit into the memory. The message names the
            entries.
    """
    await in_daemon_thread(partial(remove_leftovers, settings.cache_dir))
    device = choose_device(settings.device)
    _log_memory_limit()
    if device.type == "cpu":
        limit_threads()
    entries = await in_daemon_thread(partial(complete, entries, settings, device))
    embedders = [entry for entry in entries if entry.task == "embedding"]
    generators = [entry for entry in entries if entry.task == "generation"]
    embedding = asyncio.create_task(load_embedders(embedders, settings, device, on_broken))
    try:
        generating = await _load_generators(generators, settings, device, on_broken, builders, embedding)
        hosted: dict[str, HostedModel | HostedEmbedder] = {**generating, **await embedding}
    finally:
        embedding.cancel()
    if not hosted:
        raise ConfigurationError("none of the catalog's models can be served")
    return {entry.name: hosted[entry.name] for entry in entries if entry.name in hosted}


async def _load_generators(
    entries: list[CatalogEntry],
    settings: Settings,
    device: torch.device,
    on_broken: Callable[[], None],
    builders: Mapping[EngineName, GetBuilder],
    embedding: asyncio.Task[dict[str, HostedEmbedder]],
) -> dict[str, HostedModel]:
    """Load the models that generate text, and start their engines. See `load_all`.

    Args:
        entries: Entries with task = "generation".
        settings: The server's settings.
        device: Device of the native engine.
        on_broken: Called when an engine has failed and cannot continue.
        builders: A function for each engine that returns its builder.
        embedding: Task that loads the embedding models. On a GPU, the KV caches are allocated after its end.
    """
    groups = group_entries(entries, device)
    await in_daemon_thread(partial(refuse_unsupported_models, groups, settings.cache_dir))
    demands: dict[EngineKey, EngineDemand] = {}
    if device.type == "cuda":
        _log_replaced_precisions(groups)
        demands = await in_daemon_thread(partial(fitting_demands, groups, settings, device))
    limits: dict[EngineKey, int] = {}
    if device.type == "cpu":
        limits = await in_daemon_thread(partial(plan_caches, groups, settings))
    loaded = []
    for key, group in groups.items():
        with _naming(group[0]):
            builder = await in_daemon_thread(builders[group[0].engine])
            model = await in_daemon_thread(partial(builder.load, key, device, settings))
            loaded.append(_Loaded(key, group, builder, model))
    hosted: dict[str, HostedModel] = {}
    if device.type == "cuda":
        await asyncio.wait([embedding])
    # On a GPU, vLLM reserves a fixed share of the memory, so its engines start before the others divide the rest.
    for one in sorted(loaded, key=lambda one: one.key in demands):
        with _naming(one.group[0]):
            if one.key in demands and not limits:
                limits = await in_daemon_thread(partial(divide_free_memory, demands, device))
            for started in await _start(one, settings, device, limits.get(one.key), on_broken):
                hosted[started.entry.name] = started
    return hosted


@contextmanager
def _naming(entry: CatalogEntry) -> Iterator[None]:
    """Turn an error of the `with` block into a ConfigurationError that names the entry."""
    try:
        yield
    except (UnsupportedModel, TailraceError) as error:
        raise ConfigurationError(f"{entry.name} ({entry.weights}) cannot be served: {error}") from error
    except (RuntimeError, MemoryError) as error:
        logger.debug("loading %s failed", entry.weights, exc_info=True)
        raise ConfigurationError(
            f"{entry.name} ({entry.weights}) cannot be served: {first_line(error)}; "
            "if memory is short, lower TAILRACE_MAX_RUNNING_SEQS or TAILRACE_KV_CACHE_TOKENS"
        ) from error


def _log_memory_limit() -> None:
    allowed, present = memory_bytes(), machine_memory_bytes()
    if allowed < present:
        logger.info(
            "the control group (container) allows %.1f GiB of the machine's %.1f GiB of memory; %.1f GiB are available",
            allowed / _GIB,
            present / _GIB,
            available_memory_bytes() / _GIB,
        )


def _log_replaced_precisions(groups: Mapping[EngineKey, list[CatalogEntry]]) -> None:
    for key, group in groups.items():
        for entry in group:
            if entry.precision == "bfloat16" and key.precision != "bfloat16":
                logger.warning(
                    "%s: this GPU's compute capability is below 8.0, so it computes in %s instead of bfloat16",
                    entry.name,
                    key.precision,
                )


async def _start(
    loaded: _Loaded,
    settings: Settings,
    device: torch.device,
    cache_tokens: int | None,
    on_broken: Callable[[], None],
) -> list[HostedModel]:
    """Start the engine of a loaded model. Returns one HostedModel for each entry that shares the engine.

    Args:
        loaded: The model.
        settings: The server's settings.
        device: Device of the native engine.
        cache_tokens: Tokens of KV cache for which the memory has room; None: not limited.
        on_broken: Called when the engine has failed and cannot continue.
    """
    key, group, model = loaded.key, loaded.group, loaded.model
    windows = [window(entry, model.info.max_tokens) for entry in group]
    prompts = await in_daemon_thread(lambda: [_encoder(entry, model, settings) for entry in group])
    end_ids = await in_daemon_thread(lambda: _end_ids(model, prompts))
    engine = await loaded.builder.build(
        EngineSpec(
            key=key,
            model=model,
            max_len=max(windows),
            end_ids=end_ids,
            settings=settings,
            device=device,
            cache_tokens=cache_tokens,
            on_broken=on_broken,
        )
    )
    for entry in group:
        logger.info("%s: %s weights, %s", entry.name, key.precision, engine.path)
    models = await in_daemon_thread(lambda: _hosted(loaded, windows, prompts, engine, end_ids))
    with progress(f"warming up {key.weights} as {key.precision}"):
        await _warm_up(models[0])
    for one in models:
        if one.entry.stands_in:
            logger.warning("%s is served by a substitute model: %s", one.entry.name, one.entry.weights)
    return models


def _hosted(
    loaded: _Loaded, windows: list[int], prompts: list[PromptEncoder], engine: BaseEngine, end_ids: frozenset[int]
) -> list[HostedModel]:
    """Return one HostedModel for each entry that shares the engine. Blocks while it creates tables for grammars."""
    grammars = Grammars(loaded.model.tokenizer, engine.vocab_size, end_ids)
    grammars.prepare()
    return [
        HostedModel(
            entry,
            loaded.key.precision,
            length,
            encoder,
            engine,
            grammars,
            entry.tool_format or detect_tool_format(encoder.template),
            _thoughts(encoder, grammars, engine.vocab_size, end_ids),
            {**loaded.model.info.sampling, **(entry.sampling or {})},
            {name: loaded.key.adapters.index(folder) + 1 for name, folder in entry.adapters.items()},
        )
        for entry, length, encoder in zip(loaded.group, windows, prompts, strict=True)
    ]


def _encoder(entry: CatalogEntry, loaded: EngineModel, settings: Settings) -> PromptEncoder:
    template = entry.chat_template
    if template is None and loaded.tokenizer.chat_template is None and loaded.info.model_type == "llama":
        template = builtin_template("llama-2")
        logger.warning(
            "%s has no chat template: Llama 2's is used, with [INST] around each question. If the model was trained with "
            'another one, set chat_template in the catalog to its file; chat_template = "llama-2" confirms this one',
            entry.name,
        )
    encoder = PromptEncoder(
        loaded.tokenizer,
        chat_template=template,
        raw_control_tokens=settings.raw_control_tokens,
        reasoning=_reasoning_format(entry),
    )
    if not encoder.has_chat_template:
        logger.warning(
            "%s has no chat template: only raw prompts work. Set chat_template in the catalog to a template's file",
            entry.name,
        )
    return encoder


def _reasoning_format(entry: CatalogEntry) -> ReasoningFormat | Literal["detect"] | None:
    match entry.reasoning_format:
        case None:
            return "detect"
        case "none":
            return None
        case name:
            return FORMATS[name]


def _thoughts(
    encoder: PromptEncoder, grammars: Grammars, vocab_size: int, end_ids: frozenset[int]
) -> ModelThoughts | None:
    if encoder.reasoning is None:
        return None
    thoughts = ModelThoughts(encoder.reasoning, encoder.decoder, grammars.literal, vocab_size, end_ids)
    thoughts.prepare()
    return thoughts


def _end_ids(loaded: EngineModel, prompts: list[PromptEncoder]) -> frozenset[int]:
    """Return the tokens that end a reply, from the generation config, the tokenizer and the chat template."""
    ids = {*loaded.info.end_ids, loaded.tokenizer.eos_token_id}
    return frozenset(i for i in ids if i is not None).union(*(encoder.end_of_turn_ids() for encoder in prompts))


async def _warm_up(model: HostedModel) -> None:
    """Run one request, from tokenising to text. Raises ConfigurationError if the reply does not have three tokens."""
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
