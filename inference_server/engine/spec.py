"""Defines the interface between serving/ and the engines: the properties of an engine, and the protocol of its builder.

An engine is a package in this folder whose module `build` implements EngineBuilder. serving/engine_factory.py lists them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch

from inference_server.engine.admission import CapacityLimits
from inference_server.engine.base import BaseEngine
from inference_server.precision import Precision
from inference_server.settings.server import Settings
from inference_server.weights.model_info import ModelInfo
from inference_server.weights.source import Weights


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Properties that catalog entries must have in common to share one engine.

    Attributes:
        weights: Source of the weights.
        precision: Precision in use on the device.
        engine: Name of the engine in the catalog.
        arguments: Arguments of the engine, as a JSON object with sorted keys.
        rope: RoPE scaling from the catalog, as a JSON object with sorted keys; "" for the model's own.
        num_tokens: Longest sequence that any entry allows, prompt and reply together, in tokens. Set after the entries
            are grouped by key.
        adapters: Folders of the LoRA adapters of all entries, without duplicates. Set after the grouping, too.
        speculation: Source of draft tokens, as in the catalog; None: the engine's default for the device.
        draft: Source of a draft model's weights; None: no draft model.
    """

    weights: Weights
    precision: Precision
    engine: str
    arguments: str
    rope: str = ""
    num_tokens: int = field(default=0, compare=False)
    adapters: tuple[Path, ...] = ()
    speculation: Literal["prompt-lookup", "off"] | None = None
    draft: Weights | None = None


class EngineModel(Protocol):
    """A loaded model, with the members that serving/ reads whatever the engine."""

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""

    @property
    def info(self) -> ModelInfo:
        """Limits, end tokens and sampling defaults."""


ModelT = TypeVar("ModelT", bound=EngineModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec(Generic[ModelT]):
    """Parameters for building one engine.

    Attributes:
        key: Properties that the engine's catalog entries have in common.
        model: The model, as loaded by the same builder.
        max_len: Longest sequence, prompt and reply together, in tokens.
        end_ids: Tokens that end a reply.
        settings: Settings of the server.
        device: Device that the engine uses if it runs in this process.
        cache_tokens: Tokens of KV cache for which the device's memory has room; None: no limit.
        on_broken: Called on the event loop after the engine has failed permanently or was abandoned.
    """

    key: EngineKey
    model: ModelT
    max_len: int
    end_ids: frozenset[int]
    settings: Settings
    device: torch.device
    cache_tokens: int | None
    on_broken: Callable[[], None]

    def capacity_limits(self) -> CapacityLimits:
        """Return the limits for requests in flight, from the settings."""
        return CapacityLimits(
            slots=self.settings.max_running_seqs,
            waiting_seqs=self.settings.max_waiting_seqs,
            waiting_tokens=self.settings.max_waiting_tokens,
            account_slots=self.settings.max_account_seqs,
            batch_slots=self.settings.batch_seqs(self.device.type),
        )


class EngineBuilder(Protocol[ModelT]):
    """Functions of an engine's module `build`."""

    def load(self, key: EngineKey, device: torch.device, settings: Settings) -> ModelT:
        """Load the model as far as this engine needs it in this process. A blocking call, made on a separate thread.

        Raises:
            ConfigurationError: The model cannot be loaded, or a package is missing.
        """

    async def build(self, spec: EngineSpec[ModelT]) -> BaseEngine:
        """Start the engine. Called on the event loop, which it must not block.

        Raises:
            ConfigurationError: The engine cannot run the model, or the memory is too small.
            RuntimeError: The device's memory ran out.
        """
