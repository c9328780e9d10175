"""Environment variables that the command reads itself, with their defaults. An empty variable counts as unset."""

import os

from tailrace_cli.errors import Failure
from tailrace_shared.addresses import split_address

DEFAULT_URL = "http://127.0.0.1:8787"
# By default the services listen on both loopback addresses. The command calls the IPv4 address.
DEFAULT_HTTP_ADDRESS = "localhost:8787"
DEFAULT_GRPC_ADDRESS = "localhost:50051"
_HTTP_CLIENT_ADDRESS = "127.0.0.1:8787"
_GRPC_CLIENT_ADDRESS = "127.0.0.1:50051"
# The address to call if a service listens on all interfaces.
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}

HELP = """\
environment variables:
  TAILRACE_URL            URL of the bridge
  TAILRACE_TOKEN          API token
  TAILRACE_ACCOUNT        account whose models are called; default: the token's
  TAILRACE_CHAT_HISTORY   file with the questions of earlier chats, or off
  TAILRACE_HTTP_ADDRESS   host:port of the bridge; precedes TAILRACE_URL
  TAILRACE_GRPC_ADDRESS   host:port of the inference server, for --grpc
  TAILRACE_GRPC_TOKEN     bearer token of the inference server, for --grpc
  TAILRACE_GRPC_TLS_CA, _CLIENT_CERT, _CLIENT_KEY, _SERVER_NAME
                          TLS to the inference server, for --grpc
  NO_COLOR, FORCE_COLOR   switch colours off, or on without a terminal

`tailrace serve` passes all settings (TAILRACE_*) to both services. Options
take precedence over variables. `tailrace COMMAND --help` has examples.

exit codes: 0; 1 after an error; 2 for wrong usage; 130 after Ctrl-C"""


def variable(name: str, default: str = "") -> str:
    """Return the value of an environment variable, or `default` if it is unset or empty."""
    return os.environ.get(name) or default


def http_address() -> str:
    """Return host:port at which a client on this machine reaches the bridge.

    Raises:
        Failure: TAILRACE_HTTP_ADDRESS is not an address.
    """
    name = "TAILRACE_HTTP_ADDRESS"
    address = variable(name, _HTTP_CLIENT_ADDRESS)
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise Failure(f"{name}={address}: {error}.") from None
    host = _ANY_HOST.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bridge_url() -> str:
    """Return the URL of the bridge: from TAILRACE_HTTP_ADDRESS, else from TAILRACE_URL, else the default.

    Raises:
        Failure: TAILRACE_HTTP_ADDRESS is not an address.
    """
    if variable("TAILRACE_HTTP_ADDRESS"):
        return f"http://{http_address()}"
    return variable("TAILRACE_URL", DEFAULT_URL)


def grpc_address() -> str:
    """Return host:port of the inference server; of the first one if the variable lists several."""
    return variable("TAILRACE_GRPC_ADDRESS", _GRPC_CLIENT_ADDRESS).partition(",")[0]
