"""Prints the announcement of `tailrace serve` once both services are ready: a request to try, and the addresses."""

from urllib.parse import quote

from tailrace_cli.client import ModelLine
from tailrace_cli.environment import DEFAULT_GRPC_ADDRESS, grpc_address, variable
from tailrace_cli.errors import Failure, Refusal
from tailrace_cli.output import write

_PROMPT = '{ "prompt": "where is new york?", "stream": true }'
_TEXTS = '{ "text": ["where is new york?"] }'


def announce(address: str, seconds: float) -> None:
    """Print a curl command for the first model that generates text, or else for the first one.

    Args:
        address: The bridge as host:port.
        seconds: Time that the start took.
    """
    models = _served()
    generators = [model for model in models if not model.dimensions]
    # The name of a folder or a file may contain characters that are not allowed in a URL or are special in a shell.
    name = quote((generators or models)[0].name, safe="/@:") if models else "<model>"
    body = _TEXTS if models and not generators else _PROMPT
    # A token of the file may be for one account only.
    account = "$TAILRACE_ACCOUNT" if variable("TAILRACE_API_TOKENS_FILE") else "local"
    has_tokens = any(variable(name) for name in ("TAILRACE_API_TOKENS", "TAILRACE_API_TOKENS_FILE"))
    others = f"\nModels: {', '.join(model.name for model in models)}" if len(models) > 1 else ""
    write(f"""
Tailrace is ready after {seconds:.1f} s. Try it:

curl -N -X POST \\
  "http://{address}/client/v4/accounts/{account}/ai/run/{name}" \\
  -H "Authorization: Bearer {"$TAILRACE_TOKEN" if has_tokens else "any-token"}" \\
  -H "Content-Type:application/json" \\
  -d '{body}'
{others}
A playground is at http://{address}/
gRPC listens on {variable("TAILRACE_GRPC_ADDRESS", DEFAULT_GRPC_ADDRESS)}. Ctrl-C stops both.
""")


def _served() -> list[ModelLine]:
    """Return the models of the inference server, with the credentials of the bridge; empty if the call fails."""
    from tailrace_cli.rpc import GrpcClient

    try:
        return GrpcClient(grpc_address()).models()
    except (Failure, Refusal):
        return []
