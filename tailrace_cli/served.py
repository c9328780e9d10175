"""The command ps: lists a running server's models, and the memory of its process if it runs on this machine."""

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

from tailrace_cli.client import Client, ModelLine
from tailrace_cli.environment import DEFAULT_GRPC_ADDRESS, variable
from tailrace_cli.output import size, table, write
from tailrace_shared.addresses import is_loopback, split_address
from tailrace_shared.listeners import port_holder

_PROCESS = re.compile(r"\(process (\d+)\)")
_RESIDENT = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)


def ps(client: Client, *, url: str, as_json: bool) -> int:
    """Print the served models; with `as_json`, as a JSON object. Returns the exit code 0.

    Args:
        client: Client that lists the models.
        url: URL of the bridge or of the inference server. The memory is printed only if its host is a loopback address.
        as_json: True for JSON.
    """
    models = client.models()
    memory = _memory_bytes() if is_loopback(urlsplit(url).hostname or "") else None
    if as_json:
        write(json.dumps({"models": [_described(model) for model in models], "memory_bytes": memory}, indent=2))
        return 0
    rows = [("NAME", "WEIGHTS", "PRECISION", "IN", "OUT")]
    rows += [
        (model.name, model.weights, model.precision, str(model.context_length), _output(model)) for model in models
    ]
    table(rows)
    if memory is not None:
        write(f"memory of the inference server: {size(memory)}")
    return 0


def _output(model: ModelLine) -> str:
    return f"{model.dimensions} numbers" if model.dimensions else str(model.sequence_length)


def _described(model: ModelLine) -> dict[str, object]:
    return {
        "name": model.name,
        "weights": model.weights,
        "precision": model.precision,
        "context_length": model.context_length,
        "sequence_length": model.sequence_length,
        "dimensions": model.dimensions,
    }


def _memory_bytes() -> int | None:
    """Return the resident memory of the process that listens on the gRPC address of this machine; None: unknown."""
    try:
        _, port = split_address(variable("TAILRACE_GRPC_ADDRESS", DEFAULT_GRPC_ADDRESS))
        found = _PROCESS.search(port_holder(port))
        status = Path(f"/proc/{found[1]}/status").read_text() if found else ""
    except (ValueError, OSError):
        return None
    resident = _RESIDENT.search(status)
    return int(resident[1]) * 1024 if resident else None
