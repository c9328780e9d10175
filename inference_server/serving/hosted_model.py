"""The models this server hosts: catalog entries, each with its limits, its prompt encoder and the engine it shares.

Entries whose weights and precision are equal share one engine: the weights are loaded once and their requests run in one
batch.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from inference_server.engine.base import BaseEngine, Reply
from inference_server.engine.sequence import Completed, GenerationRequest, SamplingParams
from inference_server.engine.vllm.client import check_installed
from inference_server.errors import NoRoomForReply, PromptTooLong, TailraceError, UnsupportedModel
from inference_server.precision import Precision, choose_device, resolve_precision
from inference_server.serving.catalog import CatalogEntry, ToolFormat, builtin_template
from inference_server.serving.engine_factory import Key, in_daemon_thread, own_engine, vllm_engine
from inference_server.settings import Settings
from inference_server.text.detokenizer import Detokenizer, ReplyText
from inference_server.text.grammar import Grammars
from inference_server.text.prompt_encoder import PromptEncoder
from inference_server.text.tool_formats import format_of_template, shown_tokens
from inference_server.weights.loader import progress
from inference_server.weights.packed_cache import ModelInfo
from inference_server.weights.prepare import Described, Prepared, describe, prepare
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)

# As many prompt tokens as a raw reply's first token may need to be read as their continuation.
_CONTEXT_TOKENS = 6


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


async def load_all(
    entries: list[CatalogEntry], settings: Settings, on_broken: Callable[[], None]
) -> dict[str, HostedModel]:
    """Load every entry and generate a few tokens with each engine. Raises ConfigurationError, naming the entry."""
    device = choose_device(settings.device)
    groups: dict[Key, list[CatalogEntry]] = {}
    for entry in entries:
        groups.setdefault(_key(entry, device), []).append(entry)
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
    key: Key,
    group: list[CatalogEntry],
    settings: Settings,
    device: torch.device,
    memory_share: float,
    on_broken: Callable[[], None],
) -> list[HostedModel]:
    """`memory_share`: of a GPU's free memory, how much this group's KV cache may take."""
    loaded = await in_daemon_thread(partial(_prepared, key, device, settings))
    windows = [_window(entry, loaded.facts) for entry in group]
    prompts = await in_daemon_thread(lambda: [_encoder(entry, loaded, settings) for entry in group])
    end_ids = await in_daemon_thread(lambda: _end_ids(loaded, prompts))
    engine: BaseEngine
    if isinstance(loaded, Described):
        engine = await vllm_engine(key, loaded, max(windows), end_ids, settings, on_broken)
    else:
        engine = await own_engine(key, loaded, max(windows), end_ids, settings, device, memory_share, on_broken)
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


def _key(entry: CatalogEntry, device: torch.device) -> Key:
    arguments = json.dumps(dict(entry.vllm), sort_keys=True)
    return Key(entry.weights, resolve_precision(entry.precision, device), entry.engine, arguments)


def _prepared(key: Key, device: torch.device, settings: Settings) -> Prepared | Described:
    if key.engine == "vllm":
        check_installed()
        return describe(key.weights, settings)
    return prepare(key.weights, key.precision, device, settings)


def _window(entry: CatalogEntry, facts: ModelInfo) -> int:
    """Tokens of prompt and reply together: the sum of the entry's limits, or the model's own window if that is less."""
    wanted = entry.context_length + entry.sequence_length
    return min(wanted, facts.max_tokens or wanted)


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
