"""Prints the announcement of `tailrace serve` once both services are ready: a request to try, and the addresses."""

import shlex
from urllib.parse import quote

from tailrace_cli.client import ModelLine
from tailrace_cli.environment import DEFAULT_GRPC_ADDRESS, grpc_address, variable
from tailrace_cli.errors import Failure, Refusal
from tailrace_cli.output import write
from tailrace_cli.serving.options import replays_only

_PROMPT = '{ "prompt": "where is new york?", "stream": true }'
_TEXTS = '{ "text": ["where is new york?"] }'


def announce(address: str, seconds: float) -> None:
    """Print a curl command, the models and the addresses.

    The command calls the first model that generates text, or else the first one. Where the server only replays
    recordings, it sends a recorded request.

    Args:
        address: The bridge as host:port.
        seconds: Time that the start took.
    """
    parts = _replayed(address) if replays_only() else _computed(address)
    write(
        f"""
Tailrace is ready after {seconds:.1f} s. {parts}
A playground is at http://{address}/
gRPC listens on {variable("TAILRACE_GRPC_ADDRESS", DEFAULT_GRPC_ADDRESS)}. Ctrl-C stops both.
"""
    )


def _computed(address: str) -> str:
    """Return the part of the announcement about the models."""
    models = _served()
    generators = [model for model in models if not model.dimensions]
    name = (generators or models)[0].name if models else ""
    others = f"\nModels: {', '.join(model.name for model in models)}" if len(models) > 1 else ""
    return f"Try it:\n\n{_curl(address, name, _TEXTS if models and not generators else _PROMPT)}\n{others}"


def _replayed(address: str) -> str:
    """Return the part of the announcement about the recordings."""
    from tailrace_cli.serving.replayed import read_recordings

    found = read_recordings()
    total = sum(found.counts.values())
    number = f"the {total} replies" if total > 1 else "the one reply" if total else "the replies"
    mode = f"It replays {number} recorded in {found.folder}. No model is loaded."
    example = f" Try a recorded request:\n\n{_curl(address, found.model, found.body)}\n" if found.body else "\n"
    counts = ", ".join(f"{model} ({count})" for model, count in found.counts.items())
    return f"{mode}{example}" + (f"\nRecorded replies by model: {counts}" if counts else "")


def _curl(address: str, model: str, body: str) -> str:
    """Return the command that sends a body to a model of /ai/run. `model`: empty for a placeholder."""
    # The name of a folder or a file may contain characters that are not allowed in a URL or are special in a shell.
    name = quote(model, safe="/@:") if model else "<model>"
    # A token of the file may be for one account only.
    account = "$TAILRACE_ACCOUNT" if variable("TAILRACE_API_TOKENS_FILE") else "local"
    has_tokens = any(variable(name) for name in ("TAILRACE_API_TOKENS", "TAILRACE_API_TOKENS_FILE"))
    return f"""curl -N -X POST \\
  "http://{address}/client/v4/accounts/{account}/ai/run/{name}" \\
  -H "Authorization: Bearer {"$TAILRACE_TOKEN" if has_tokens else "any-token"}" \\
  -H "Content-Type:application/json" \\
  -d {shlex.quote(body)}"""


def _served() -> list[ModelLine]:
    """Return the models of the inference server, with the credentials of the bridge; empty if the call fails."""
    from tailrace_cli.rpc import GrpcClient

    try:
        return GrpcClient(grpc_address()).models()
    except (Failure, Refusal):
        return []
