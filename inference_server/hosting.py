"""The models this server hosts: catalog entries, each with its limits, its prompt encoder and the engine it shares.

Entries whose weights and precision are equal share one engine: the weights are loaded once and their requests run in one
batch.
"""

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

from inference_server.admission import Room
from inference_server.base_engine import BaseEngine, Reply
from inference_server.catalog import CatalogEntry, EngineName, Precision, ToolFormat, Weights, builtin_template
from inference_server.config import Settings
from inference_server.detokenizer import Detokenizer, ReplyText
from inference_server.engine import Engine
from inference_server.errors import (
    ConfigurationError,
    NoRoomForReply,
    PromptTooLong,
    TailraceError,
    UnsupportedModel,
)
from inference_server.grammar import Grammars
from inference_server.kv_cache import CPU_BLOCK_SIZE, CUDA_BLOCK_SIZE
from inference_server.linears import cache_dtype
from inference_server.loader import (
    choose_device,
    progress,
    resolve_precision,
    total_memory_bytes,
)
from inference_server.packed import Facts
from inference_server.preparation import Described, Prepared, describe, prepare
from inference_server.prompt import PromptEncoder
from inference_server.runner import ModelRunner
from inference_server.scheduler import Policy
from inference_server.sequence import Completed, GenerationRequest, SamplingParams
from inference_server.tools import format_of_template, shown_tokens
from inference_server.vllm_engine.arguments import engine_arguments
from inference_server.vllm_engine.client import VllmClient, check_installed, end_unfinished
from inference_server.vllm_engine.engine import VllmEngine

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# As many prompt tokens as a raw reply's first token may need to be read as their continuation.
_CONTEXT_TOKENS = 6
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A catalog entry that is loaded. Lengths are in tokens."""

    entry: CatalogEntry
    precision: Precision  # in force
    window: int  # prompt and reply together
    prompts: PromptEncoder
    engine: BaseEngine
    grammars: Grammars
    tool_format: ToolFormat

    @property
    def context_length(self) -> int:
        """Longest prompt; at least one token of the window is left for the reply."""
        return min(self.entry.context_length, self.window - 1)

    def max_tokens(self, num_prompt_tokens: int, wanted: int | None = None) -> int:
        """Longest reply: what was wanted, cut to the sequence length and to what the prompt leaves of the window."""
        limit = min(self.entry.sequence_length, self.window - num_prompt_tokens)
        return max(0, limit if wanted is None else min(limit, wanted))

    def check_length(self, num_prompt_tokens: int, max_tokens: int | None = None) -> None:
        """Raises PromptTooLong, and NoRoomForReply if max_tokens is given and does not fit beside the prompt."""
        if num_prompt_tokens > self.context_length:
            raise PromptTooLong(num_prompt_tokens, self.context_length)
        if max_tokens is not None and num_prompt_tokens + max_tokens > self.window:
            raise NoRoomForReply(num_prompt_tokens, max_tokens, self.window)

    def submit(self, request: GenerationRequest, *, shows_calls: bool = False) -> Reply:
        """`shows_calls`: the text holds the control tokens that tool calls begin with. Raises what BaseEngine.submit raises."""
        context = request.prompt_ids[-_CONTEXT_TOKENS:] if request.continues_prompt else ()
        decode = self.prompts.decoder(shown_tokens(self.tool_format)) if shows_calls else self.prompts.decode
        return self.engine.submit(request, ReplyText(Detokenizer(decode, context), request.stop))


@dataclass(frozen=True, slots=True)
class _Key:
    """What makes two entries share an engine."""

    weights: Weights
    precision: Precision
    engine: EngineName
    arguments: str  # of the engine, as JSON

    @classmethod
    def of(cls, entry: CatalogEntry, device: torch.device) -> "_Key":
        arguments = json.dumps(dict(entry.vllm), sort_keys=True)
        return cls(entry.weights, resolve_precision(entry.precision, device), entry.engine, arguments)


async def load_all(
    entries: list[CatalogEntry], settings: Settings, on_broken: Callable[[], None]
) -> dict[str, HostedModel]:
    """Load every entry and generate a few tokens with each engine. Raises ConfigurationError, naming the entry."""
    device = choose_device(settings.device)
    groups: dict[_Key, list[CatalogEntry]] = {}
    for entry in entries:
        groups.setdefault(_Key.of(entry, device), []).append(entry)
    hosted: dict[str, HostedModel] = {}
    for number, (key, group) in enumerate(groups.items()):
        share = 1 / (len(groups) - number)
        try:
            for model in await _load_group(key, group, settings, device, share, on_broken):
                hosted[model.entry.name] = model
        except (UnsupportedModel, TailraceError) as error:
            raise ConfigurationError(f"{group[0].name} ({key.weights}) cannot be served: {error}") from error
        except (RuntimeError, MemoryError) as error:
            logger.debug("loading %s failed", key.weights, exc_info=True)
            raise ConfigurationError(
                f"{group[0].name} ({key.weights}) cannot be served: {str(error).splitlines()[0] or 'out of memory'}; "
                "if memory is short, lower TAILRACE_MAX_RUNNING_SEQS or TAILRACE_KV_CACHE_TOKENS"
            ) from error
    return {entry.name: hosted[entry.name] for entry in entries}


async def _load_group(
    key: _Key,
    group: list[CatalogEntry],
    settings: Settings,
    device: torch.device,
    memory_share: float,
    on_broken: Callable[[], None],
) -> list[HostedModel]:
    """`memory_share`: of a GPU's free memory, how much this group's KV cache may take."""
    loaded = await _in_daemon_thread(partial(_prepared, key, device, settings))
    windows = [_window(entry, loaded.facts) for entry in group]
    prompts = await _in_daemon_thread(lambda: [_encoder(entry, loaded, settings) for entry in group])
    end_ids = await _in_daemon_thread(lambda: _end_ids(loaded, prompts))
    engine: BaseEngine
    if isinstance(loaded, Described):
        engine = await _vllm_engine(key, loaded, max(windows), end_ids, settings, on_broken)
    else:
        engine = await _own_engine(key, loaded, max(windows), end_ids, settings, device, memory_share, on_broken)
    grammars = Grammars(loaded.tokenizer, engine.vocab_size)
    models = [
        HostedModel(
            entry,
            key.precision,
            window,
            encoder,
            engine,
            grammars,
            entry.tool_format or format_of_template(encoder.template),
        )
        for entry, window, encoder in zip(group, windows, prompts, strict=True)
    ]
    with progress(f"warming up {key.weights} as {key.precision}"):
        await _warm_up(models[0])
    for model in models:
        if model.entry.stands_in:
            logger.warning("%s is a stand-in: %s answers under this name", model.entry.name, model.entry.weights)
    return models


def _prepared(key: _Key, device: torch.device, settings: Settings) -> Prepared | Described:
    if key.engine == "vllm":
        check_installed()
        return describe(key.weights, settings)
    return prepare(key.weights, key.precision, device, settings)


async def _own_engine(
    key: _Key,
    loaded: Prepared,
    max_len: int,
    end_ids: set[int],
    settings: Settings,
    device: torch.device,
    memory_share: float,
    on_broken: Callable[[], None],
) -> Engine:
    block_size = CUDA_BLOCK_SIZE if device.type == "cuda" else CPU_BLOCK_SIZE
    runner = ModelRunner(
        loaded.model,
        num_blocks=_num_blocks(block_size, max_len, settings, loaded, device, memory_share),
        block_size=block_size,
        max_len=max_len,
        invariant_rows=settings.max_running_seqs if settings.batch_invariant else None,
        cache_dtype=cache_dtype(key.precision) if device.type == "cpu" else None,
    )
    await _in_daemon_thread(runner.probe)
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


async def _vllm_engine(
    key: _Key,
    loaded: Described,
    max_len: int,
    end_ids: set[int],
    settings: Settings,
    on_broken: Callable[[], None],
) -> VllmEngine:
    arguments = engine_arguments(loaded.folder, key.precision, max_len, json.loads(key.arguments), settings)
    scope_by_account = settings.prefix_cache == "account"
    with progress(f"starting vLLM with {key.weights} as {key.precision}", every_seconds=10.0):
        try:
            client = await _in_daemon_thread(partial(VllmClient, arguments, end_ids, scope_by_account=scope_by_account))
        except asyncio.CancelledError:
            end_unfinished()
            raise
    logger.info("%s as %s in vLLM: %d blocks of KV cache", key.weights, key.precision, client.num_blocks)
    return VllmEngine(client, room=_room(settings), on_broken=on_broken)


async def _in_daemon_thread(function: Callable[[], _Result]) -> _Result:
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


def _window(entry: CatalogEntry, facts: Facts) -> int:
    """Tokens of prompt and reply together: the sum of the entry's limits, or the model's own window if that is less."""
    wanted = entry.context_length + entry.sequence_length
    return min(wanted, facts.max_tokens or wanted)


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


def _encoder(entry: CatalogEntry, loaded: Prepared | Described, settings: Settings) -> PromptEncoder:
    template = entry.chat_template
    if template is None and loaded.tokenizer.chat_template is None and loaded.facts.model_type == "llama":
        template = builtin_template("llama-2")
    encoder = PromptEncoder(loaded.tokenizer, chat_template=template, raw_control_tokens=settings.raw_control_tokens)
    if not encoder.has_chat_template:
        logger.warning("%s has no chat template: only raw prompts work (chat_template in the catalog)", entry.name)
    return encoder


def _end_ids(loaded: Prepared | Described, prompts: list[PromptEncoder]) -> set[int]:
    """Every token that ends a reply: of the generation config, the tokenizer, and the chat template's end of a turn."""
    ids = {*loaded.facts.end_ids, loaded.tokenizer.eos_token_id}
    return {i for i in ids if i is not None}.union(*(encoder.end_of_turn_ids() for encoder in prompts))


async def _warm_up(model: HostedModel) -> None:
    """A real generation from end to end: prompt, cache, sampling, text. Raises if it fails."""
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
