"""Describes models in the format that OpenRouter requires of its providers: models/search?format=openrouter."""

import re

from http_bridge.api.upstream_models import sampling_defaults
from tailrace.v1.inference_pb2 import Model, Task
from tailrace_shared.request_fields import SAMPLING_FIELDS

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_FILE_ENDINGS = (".gguf", ".safetensors", ".bin")
_FREE = "0"


def openrouter_entry(model: Model, *, created: int) -> dict[str, object]:
    """Return a model in OpenRouter's format. `created`: Unix time in seconds."""
    is_embedding = model.task == Task.TASK_TEXT_EMBEDDING
    return {
        "id": model.name,
        "name": model.name.rpartition("/")[2],
        "created": created,
        "hugging_face_id": _hub_id(model.weights),
        "context_length": model.context_length if is_embedding else model.window,
        "max_output_length": None if is_embedding else model.sequence_length,
        "input_modalities": ["text"],
        "output_modalities": ["embeddings"] if is_embedding else ["text"],
        "pricing": {"prompt": _FREE, "completion": _FREE, "input_cache_read": _FREE},
        "supported_features": [] if is_embedding else _features(model),
        "default_parameters": sampling_defaults(model),
        "supported_sampling_parameters": [] if is_embedding else [*(field.name for field in SAMPLING_FIELDS), "stop"],
    }


def _features(model: Model) -> list[str]:
    features = ["tools", "json_mode", "structured_outputs", "logprobs"]
    return [*features, "reasoning"] if model.has_reasoning else features


def _hub_id(weights: str) -> str | None:
    """Return the id of the weights on the Hugging Face Hub; None if they are a folder or a file."""
    name = weights.partition("@")[0]
    return name if _HUB_ID.fullmatch(name) and not name.endswith(_FILE_ENDINGS) else None
