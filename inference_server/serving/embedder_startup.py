"""Loads the embedding models of the catalog and starts their engines.

Entries with the same weights and precision share one engine.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from inference_server.embedding.encoder import PackedText
from inference_server.embedding.engine import EmbeddingEngine
from inference_server.embedding.job import EmbeddingRequest
from inference_server.embedding.load import LoadedEncoder, load_encoder
from inference_server.engine.admission import CapacityLimits
from inference_server.engine.daemon_thread import in_daemon_thread
from inference_server.errors import TailraceError, first_line
from inference_server.kernels.jit.openmp import use_one_thread
from inference_server.machine import available_memory_bytes
from inference_server.precision import Precision, resolve_precision
from inference_server.serving.automatic import model_path
from inference_server.serving.catalog import CatalogEntry
from inference_server.serving.hosted_embedder import HostedEmbedder
from inference_server.settings.server import Settings
from inference_server.weights.shape import read_shape
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)

# Largest number of tokens in a batch. On a CPU, larger batches are not faster, and delay the generation of text longer.
_BATCH_TOKENS = {"cpu": 1_024, "cuda": 16_384}
_GIB = 2**30


async def load_embedders(
    entries: list[CatalogEntry], settings: Settings, device: torch.device, on_broken: Callable[[], None]
) -> dict[str, HostedEmbedder]:
    """Load the entries' models, start their engines, and embed one text with each.

    Args:
        entries: Entries with task = "embedding".
        settings: The server's settings.
        device: Device of the models.
        on_broken: Called when an engine has failed and cannot continue.

    Returns:
        The loaded models by name. Entries of one engine that cannot be served are left out, with a warning, if all of
        them are optional.

    Raises:
        ConfigurationError: An entry cannot be served, and it or another entry of its engine is not optional. The
            message names the entries.
    """
    groups: dict[tuple[Weights, Precision], list[CatalogEntry]] = {}
    for entry in entries:
        groups.setdefault((entry.weights, resolve_precision(entry.precision, device)), []).append(entry)
    hosted: dict[str, HostedEmbedder] = {}
    for (weights, precision), group in groups.items():
        try:
            if device.type == "cpu":
                await in_daemon_thread(partial(_check_memory, weights, precision, settings.cache_dir))
            loaded = await in_daemon_thread(partial(load_encoder, weights, precision, device, settings.cache_dir))
            for one in await _start(loaded, group, precision, settings, device, on_broken):
                hosted[one.entry.name] = one
        except (TailraceError, ConfigurationError, RuntimeError, MemoryError) as error:
            name = ", ".join(entry.name for entry in group)
            if not all(entry.is_optional for entry in group):
                raise ConfigurationError(f"{name} ({weights}) cannot be served: {first_line(error)}") from error
            logger.warning("%s is left out, because it is optional and cannot be served: %s", name, first_line(error))
    return hosted


def _check_memory(weights: Weights, precision: Precision, cache_dir: Path) -> None:
    """Check, before an embedding model is loaded, that its weights fit into the free memory of a CPU.

    Raises:
        ConfigurationError: The weights do not fit, or the configuration is not available.
    """
    path = model_path(weights, cache_dir, may_fetch=True)
    shape = read_shape(path) if path is not None and path.exists() else None
    needed, free = shape.weight_bytes(precision, "cpu") if shape else 0, available_memory_bytes()
    if needed > free:
        raise ConfigurationError(
            f"its weights need {needed / _GIB:.1f} GiB of memory, but {free / _GIB:.1f} GiB are free: serve fewer or smaller "
            "models, or use a machine with more memory"
        )


async def _start(
    loaded: LoadedEncoder,
    group: list[CatalogEntry],
    precision: Precision,
    settings: Settings,
    device: torch.device,
    on_broken: Callable[[], None],
) -> list[HostedEmbedder]:
    """Start the engine of a loaded model. Returns one HostedEmbedder for each entry that shares the engine."""
    limits = CapacityLimits(
        slots=settings.max_running_seqs,
        waiting_seqs=settings.max_waiting_seqs,
        waiting_tokens=settings.max_waiting_tokens,
        account_slots=settings.max_account_seqs,
    )
    # For batch-invariant vectors, each text is a batch by itself: the rounding of a matrix product may depend on its
    # number of rows.
    batch_tokens = 1 if settings.batch_invariant else _BATCH_TOKENS[device.type]
    engine = EmbeddingEngine(
        loaded.encoder,
        limits=limits,
        batch_tokens=batch_tokens,
        on_broken=on_broken,
        on_thread=use_one_thread if settings.deterministic and device.type == "cpu" else _nothing,
    )
    logger.info(
        "%s as %s on %s: weights %.2f GiB, %d dimensions, texts up to %d tokens",
        group[0].weights,
        precision,
        device,
        loaded.num_bytes / _GIB,
        loaded.encoder.dimensions,
        loaded.max_tokens,
    )
    if not loaded.rules.is_declared and any(entry.pooling is None for entry in group):
        logger.warning(
            "%s has no modules.json: its vectors are the mean of all tokens, not normalised. Set pooling and normalize in "
            "the catalog",
            group[0].weights,
        )
    models = []
    for entry in group:
        length = min(entry.context_length, loaded.max_tokens)
        models.append(HostedEmbedder(entry, precision, length, loaded.texts, loaded.rules, engine))
        logger.info("%s: %s weights, texts packed without padding", entry.name, precision)
        if entry.stands_in:
            logger.warning("%s is served by a substitute model: %s", entry.name, entry.weights)
    try:
        async with engine.submit(EmbeddingRequest(texts=[PackedText([1, 2, 3], "mean", False)])) as job:
            await job.vectors()
    except TailraceError:
        await engine.stop()  # an optional entry is then left out, so the engine's thread must end
        raise
    return models


def _nothing() -> None:
    """Do nothing when an engine's thread starts."""
