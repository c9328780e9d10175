"""The text and embedding models of Cloudflare Workers AI: their weights and limits, and the engine that runs them.

The data are in tailrace_shared/catalogue/workers-ai.toml, whose comments explain every key. Does not import torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

from pydantic import Field, model_validator

from inference_server.serving.catalog_tables import ReplyShape, SamplingTable, StrictTable, Task
from inference_server.text.reasoning.formats import FormatName
from inference_server.text.tool_formats import ToolFormat
from tailrace_shared.catalogue import workers_ai

Feature = Literal["tools", "json", "reasoning", "vision", "lora", "batch"]
Runner = Literal["tailrace", "vllm", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model of Workers AI's catalogue.

    Attributes:
        name: The name that clients request, such as "@cf/meta/llama-3.2-1b-instruct".
        task: The model's purpose.
        hub: The repository of its weights on the hub; None: the weights are not published.
        description: One sentence.
        licence: Name of the weights' licence; None: not verified.
        gate: Page on which the licence must be accepted before a download; None: the weights are open.
        context_length: Workers AI's context window in tokens, at most the model's own; None: unknown.
        sequence_length: Longest reply in tokens; None: no separate limit.
        shape: Format of the model's REST replies.
        features: Features that Workers AI documents for the model.
        runs_on: The engine of this server that can run the weights.
        obstacle: Reason why the native engine cannot run the weights, as a clause; empty if it can.
        sampling: Default values of sampling parameters, by their names in SAMPLING_FIELDS; None: no such values.
        tool_format: Syntax of tool calls; None: the one that the chat template uses.
        reasoning_format: Format of thoughts; None: the one that the chat template contains.
        is_removed: True if Cloudflare removed the model, and answers its name with error 5028.
        small_stand_in: Hub repository of a small substitute model with open weights, for a machine without a GPU; None:
            there is no such repository.
    """

    name: str
    task: Task
    hub: str | None
    description: str
    licence: str | None
    gate: str | None
    context_length: int | None
    sequence_length: int | None
    shape: ReplyShape
    features: tuple[Feature, ...]
    runs_on: Runner
    obstacle: str
    sampling: Mapping[str, float] | None
    tool_format: ToolFormat | None
    reasoning_format: FormatName | Literal["none"] | None
    is_removed: bool
    small_stand_in: str | None


class KnownModelTable(StrictTable):
    """A `[[models]]` table of workers-ai.toml."""

    name: Annotated[str, Field(pattern=r"^@(cf|hf)/[^/ ]+/[^/ ]+$")]
    task: Task = "generation"
    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    description: Annotated[str, Field(min_length=1)]
    licence: Annotated[str, Field(min_length=1)] | None = None
    gated: bool = False
    context_length: Annotated[int, Field(ge=1)] | None = None
    sequence_length: Annotated[int, Field(ge=1)] | None = None
    shape: ReplyShape = "response"
    features: list[Feature] = []
    runs_on: Runner = "tailrace"
    obstacle: str = ""
    sampling: SamplingTable | None = None
    tool_format: ToolFormat | None = None
    reasoning_format: FormatName | Literal["none"] | None = None
    removed: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")] | None = None
    small_stand_in: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None

    @model_validator(mode="after")
    def _gives_its_obstacle(self) -> "KnownModelTable":
        if (self.runs_on == "tailrace") == bool(self.obstacle):
            raise ValueError('obstacle is required unless runs_on = "tailrace", and not allowed otherwise')
        if self.runs_on != "none" and self.hub is None:
            raise ValueError("hub is missing")
        return self


@cache
def known_models() -> Mapping[str, KnownModel]:
    """Return the models of the catalogue by name, in the catalogue's order, removed ones last."""
    return {name: _known(KnownModelTable.model_validate(table)) for name, table in workers_ai.tables().items()}


def _known(table: KnownModelTable) -> KnownModel:
    return KnownModel(
        name=table.name,
        task=table.task,
        hub=table.hub,
        description=table.description,
        licence=table.licence,
        gate=workers_ai.gate(workers_ai.tables()[table.name]),
        context_length=table.context_length,
        sequence_length=table.sequence_length,
        shape=table.shape,
        features=tuple(table.features),
        runs_on=table.runs_on,
        obstacle=table.obstacle,
        sampling=table.sampling.model_dump(exclude_none=True) if table.sampling else None,
        tool_format=table.tool_format,
        reasoning_format=table.reasoning_format,
        is_removed=table.removed is not None,
        small_stand_in=table.small_stand_in,
    )
