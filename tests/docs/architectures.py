"""Generates the tables of docs/architectures.md: architectures that this server runs, and those that it refuses."""

from inference_server.cpu.paths import predicted_path
from inference_server.gpu.paths import has_fused_layers
from inference_server.kernels.isa.choice import obstacle
from inference_server.weights.architectures import reasons
from tests.support.models.text_architectures import SERVED, small_config

_CPU = {"all": "one kernel program", "decode": "kernel program; prompts by modules", "none": "modules"}


def served_table() -> str:
    """Return the table of architectures that run, with their paths in bfloat16, in Markdown.

    tests/exact/test_architectures.py compares the replies of each of them with those of transformers.
    """
    assert obstacle() is None, "the table needs a CPU with kernels"
    lines = ["| architecture | on a CPU | on a GPU |", "|---|---|---|"]
    for name in SERVED:
        config = small_config(name)
        gpu = "fused operators" if has_fused_layers(config) else "modules"
        lines.append(f"| `{name}` | {_CPU[predicted_path(config, 'bfloat16').program]} | {gpu} |")
    return "\n".join(lines)


def refused_table() -> str:
    """Return the table of architectures that are refused by name, in Markdown."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons().items():
        by_reason.setdefault(reason, []).append(f"`{name}`")
    lines = ["| reason | architectures |", "|---|---|"]
    return "\n".join(lines + [f"| {reason} | {', '.join(names)} |" for reason, names in by_reason.items()])
