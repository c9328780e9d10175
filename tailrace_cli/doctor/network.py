"""Checks of the network: the addresses of the services, the running bridge, the API token."""

import http.client
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO, Any

from tailrace_cli.doctor.finding import Finding
from tailrace_cli.environment import DEFAULT_GRPC_ADDRESS, DEFAULT_HTTP_ADDRESS, bridge_url, variable
from tailrace_cli.errors import Failure
from tailrace_shared.addresses import is_loopback, split_address
from tailrace_shared.listeners import LOOPBACKS, local_hosts, port_holder

# Requests bypass proxies, because the bridge is on this machine or in its network.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_TIMEOUT_SECONDS = 5.0
_ALL_HOSTS = ("0.0.0.0", "::")


def addresses() -> Iterator[Finding]:
    """Report which addresses of the services are in use on this machine."""
    for name, default in {
        "TAILRACE_HTTP_ADDRESS": DEFAULT_HTTP_ADDRESS,
        "TAILRACE_GRPC_ADDRESS": DEFAULT_GRPC_ADDRESS,
    }.items():
        address = variable(name, default)
        try:
            host, port = split_address(address)
        except ValueError as error:
            yield Finding(None, f"{name}={address} is not checked: {error}")
            continue
        hosts = LOOPBACKS if host in _ALL_HOSTS else local_hosts(host)
        if any(_is_in_use(each, port) for each in hosts):
            is_here = is_loopback(host) or host in _ALL_HOSTS
            holder = port_holder(port) if is_here else ""
            by = f" by {holder}" if holder else ""
            advice = f"If another program than Tailrace listens there, set {name}."
            yield Finding(None, f"{address} is in use{by}", advice)
        else:
            yield Finding(None, f"{address} is free")


def stack(url: str | None, token: str, account: str = "") -> Iterator[Finding]:
    """Check whether the bridge is ready and accepts the token.

    Args:
        url: URL of the bridge; None: the environment's.
        token: API token; empty: none.
        account: Account that the token must be for; empty: any.
    """
    try:
        url = url or bridge_url()
    except Failure:
        yield Finding(None, "not checked, because TAILRACE_HTTP_ADDRESS is wrong")
        return
    status, answer = _get(f"{url}/readyz", token)
    if status is None:
        yield Finding(None, f"no bridge answers at {url}", "Start one with `tailrace serve`.")
        return
    if status not in (200, 503) or answer.get("status") not in ("ready", "not ready"):
        advice = "Set TAILRACE_HTTP_ADDRESS to another address, or pass the bridge's URL with --url."
        yield Finding(False, f"another program answers at {url}", advice)
        return
    if status != 200:
        advice = "The server's log has the details. Without a server, start one: python -m inference_server."
        yield Finding(False, f"{url}: {answer.get('reason', status)}", advice)
        return
    yield Finding(True, f"the bridge at {url} is ready")
    yield _token_finding(url, token, account)


def _token_finding(url: str, token: str, account: str) -> Finding:
    """Return the finding about the token of a bridge that is ready."""
    owner = f"accounts/{account}" if account else "user"
    status, answer = _get(f"{url}/client/v4/{owner}/tokens/verify", token or "any-token")
    if status == 200:
        accounts: Any = _get(f"{url}/client/v4/accounts", token or "any-token")[1].get("result") or [{}]
        name = account or accounts[0].get("id")
        return Finding(
            True, f"the token is accepted for the account {name}" if name and token else "the token is accepted"
        )
    if not token:
        return Finding(
            None,
            "the bridge requires a token, and no token was passed",
            "Pass one with --token or TAILRACE_TOKEN. `tailrace token ACCOUNT` makes one.",
            is_warning=True,
        )
    if status == 403:
        return Finding(
            False,
            f"the token is not for the account {account}",
            "Pass its own account with --account or TAILRACE_ACCOUNT, or none.",
        )
    errors: Any = answer.get("errors") or [{}]
    advice = "Pass a valid one with --token or TAILRACE_TOKEN. `tailrace token ACCOUNT` makes one."
    return Finding(False, f"the token is refused: {errors[0].get('message')}", advice)


def _is_in_use(host: str, port: int) -> bool:
    """Return True if a program accepts connections at the address."""
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_SECONDS):
            return True
    except OSError:
        return False


def _get(url: str, token: str) -> tuple[int | None, dict[str, object]]:
    """Return status and JSON object of a response.

    The status is None if no program answers, and 0 if a program answers, but not in HTTP/1.1. The object is empty if
    the response is not a JSON object.
    """
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 (the user's own address)
        with _OPENER.open(request, timeout=_TIMEOUT_SECONDS) as response:
            return response.status, _json_object(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _json_object(error)
    except http.client.RemoteDisconnected:
        return None, {}
    except http.client.HTTPException:
        return 0, {}
    except (OSError, ValueError):
        return None, {}


def _json_object(response: IO[bytes]) -> dict[str, object]:
    try:
        content = json.load(response)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
