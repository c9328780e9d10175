"""Generates the tables of docs/catalogue.md from the catalogue of Workers AI's models."""

from collections.abc import Iterable

from inference_server.serving.known_models import KnownModel, known_models
from tailrace_shared.catalogue import workers_ai

_RUNNERS = {"tailrace": "yes", "vllm": "with vLLM", "none": "no"}


def generation_table() -> str:
    """Return a Markdown table of the current models that generate text."""
    return _table(model for model in known_models().values() if model.task == "generation" and not model.is_removed)


def embedding_table() -> str:
    """Return a Markdown table of the current embedding models."""
    return _table(model for model in known_models().values() if model.task == "embedding" and not model.is_removed)


def removed_table() -> str:
    """Return a Markdown table of the models that Cloudflare removed."""
    lines = ["| name | removed | weights | licence | served here |", "|---|---|---|---|---|"]
    for model in known_models().values():
        if model.is_removed:
            removed = workers_ai.removed_on(model.name)
            lines.append(f"| `{model.name}` | {removed} | {_weights(model)} | {_licence(model)} | {_runs(model)} |")
    return "\n".join(lines)


def _table(models: Iterable[KnownModel]) -> str:
    head = "| name | context | features | weights | licence | served here | small substitute |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for model in models:
        context = f"{model.context_length:,}" if model.context_length else "–"
        features = ", ".join(model.features) or "–"
        small = f"`{model.small_stand_in}`" if model.small_stand_in else "–"
        cells = (f"`{model.name}`", context, features, _weights(model), _licence(model), _runs(model), small)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _weights(model: KnownModel) -> str:
    return f"[{model.hub}](https://huggingface.co/{model.hub})" if model.hub else "–"


def _licence(model: KnownModel) -> str:
    licence = model.licence or "not verified"
    return f"{licence}; gated" if model.gate else licence


def _runs(model: KnownModel) -> str:
    runner = _RUNNERS[model.runs_on]
    return f"{runner}: {model.obstacle}" if model.obstacle else runner
