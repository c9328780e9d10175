"""Properties of a model apart from its tensors, for the engines and for the packed cache."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model's limits and end tokens.

    Attributes:
        model_type: Name of the architecture in transformers.
        max_tokens: Limit of prompt and reply together, in tokens; None means no limit.
        end_ids: Tokens that end a reply, from the model's generation config.
    """

    model_type: str
    max_tokens: int | None
    end_ids: list[int]
