"""Properties of a model apart from its tensors, for the engines and for the packed cache."""

import logging
from dataclasses import dataclass, field
from typing import Any

from tailrace_shared.request_fields import SAMPLING_FIELDS

logger = logging.getLogger(__name__)

# Sampling parameters that a generation config and a request have in common, under the same names.
_CONFIGURED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model's limits, end tokens and sampling defaults.

    Attributes:
        model_type: Name of the architecture in transformers.
        max_tokens: Limit of prompt and reply together, in tokens; None means no limit.
        end_ids: Tokens that end a reply, from the model's generation config.
        sampling: Sampling parameters from the model's generation config, by SamplingParams' names.
    """

    model_type: str
    max_tokens: int | None
    end_ids: list[int]
    sampling: dict[str, float] = field(default_factory=dict)


def sampling_defaults(generation_config: Any) -> dict[str, float]:
    """Return the sampling parameters that a generation config sets, by SamplingParams' names.

    With `do_sample` false the temperature is 0. Values that are invalid in a request are left out, for example a top_k
    of 0, which means no limit in transformers.

    Args:
        generation_config: A GenerationConfig of transformers, whose unset parameters are None.
    """
    ranges = {each.name: each.grpc for each in SAMPLING_FIELDS}
    found: dict[str, float] = {}
    for name in _CONFIGURED:
        value = getattr(generation_config, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool) and value in ranges[name]:
            found[name] = int(value) if name == "top_k" else float(value)
        elif value is not None and value != 0:
            logger.warning("ignored %s in the model's generation config: %r is not %s", name, value, ranges[name])
    if getattr(generation_config, "do_sample", None) is False:
        found["temperature"] = 0.0
    return found
