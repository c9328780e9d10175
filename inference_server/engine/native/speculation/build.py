"""Selects the sources of an engine's draft tokens, and loads its draft model."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch

from inference_server.attention.kv_cache import BLOCK_SIZE
from inference_server.attention.rope import RopeChoice
from inference_server.engine.native.scheduling.scheduler import Scheduler
from inference_server.engine.native.speculation.costs import MAX_ROWS
from inference_server.engine.native.speculation.draft_model import DraftModel, num_blocks
from inference_server.engine.native.speculation.drafting import MAX_SEQS, Drafting
from inference_server.engine.spec import EngineKey, EngineSpec
from inference_server.model.runner import ModelRunner
from inference_server.precision import cache_dtype
from inference_server.settings.server import Settings
from inference_server.weights.prepare import PreparedModel, prepare
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)


def with_draft_model(model: PreparedModel, key: EngineKey, device: torch.device, settings: Settings) -> PreparedModel:
    """Return the model with the draft model of its key, if there is one and the device is a CPU.

    Raises:
        ConfigurationError: The draft model cannot be loaded, or has a different tokenizer.
    """
    if key.draft is None or key.speculation == "off":
        return model
    if device.type != "cpu":
        logger.warning("the draft model %s is not used: draft models run on a CPU only", key.draft)
        return model
    draft = prepare(key.draft, key.precision, device, settings, RopeChoice(num_tokens=key.num_tokens))
    if _vocabulary(draft.tokenizer) != _vocabulary(model.tokenizer):
        raise ConfigurationError(
            f"the draft model {key.draft} has another tokenizer than {key.weights}: "
            "set draft to a model of the same family, or remove it"
        )
    return dataclasses.replace(model, draft=draft, num_bytes=model.num_bytes + draft.num_bytes)


def drafting_of(spec: EngineSpec[PreparedModel], runner: ModelRunner) -> Callable[[Scheduler], Drafting] | None:
    """Return a function that creates the Drafting for a scheduler, or None if the engine uses no draft tokens.

    On a CPU, prompt lookup is on unless the catalog sets "off". On a GPU it is off unless the catalog sets
    "prompt-lookup" or a draft model. Steps with draft tokens on a GPU do not overlap with the work of the host.

    Args:
        spec: Parameters of the engine.
        runner: Computes the forward passes of the engine's model.
    """
    is_cpu = spec.device.type == "cpu"
    wanted = spec.key.speculation or ("prompt-lookup" if is_cpu or spec.key.draft else "off")
    if wanted == "off":
        return None
    # Passes that are not kernel programs have at most one row for each slot, the length of `runner.sampled`.
    max_rows = MAX_ROWS if is_cpu and not spec.settings.batch_invariant else len(runner.sampled)
    draft = spec.model.draft
    draft_runner = None if draft is None else _draft_runner(draft, spec)
    sources = "earlier text" if draft is None else f"earlier text and {spec.key.draft}"
    logger.info("%s as %s uses draft tokens from %s if they save time", spec.key.weights, spec.key.precision, sources)

    def make(scheduler: Scheduler) -> Drafting:
        model = None
        if draft_runner is not None:
            model = DraftModel(draft_runner, max_seqs=MAX_SEQS, max_len=spec.max_len, vocab_size=runner.vocab_size)
        return Drafting(scheduler, max_rows, model)

    return make


def _draft_runner(draft: PreparedModel, spec: EngineSpec[PreparedModel]) -> ModelRunner:
    """Return a checked runner of the draft model. Raises ConfigurationError if its window is too short."""
    if draft.info.max_tokens is not None and draft.info.max_tokens < spec.max_len:
        raise ConfigurationError(
            f"the draft model {spec.key.draft} has a window of {draft.info.max_tokens} tokens, but the catalog allows "
            f"{spec.max_len}: lower context_length or sequence_length, or remove draft"
        )
    runner = ModelRunner(
        draft.model,
        num_blocks=num_blocks(MAX_SEQS, spec.max_len, BLOCK_SIZE),
        max_len=spec.max_len,
        max_seqs=MAX_SEQS,
        cache_dtype=cache_dtype(spec.key.precision),
    )
    runner.probe()
    return runner


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary
