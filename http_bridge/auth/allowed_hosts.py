"""Refuses requests whose Host header names another site: the protection against DNS rebinding.

The owner of evil.example can let that name resolve to 127.0.0.1. To the browser, the bridge then has the same origin as
a page of evil.example, and the page can read every reply. The page's requests still have `Host: evil.example`. Without
API tokens the bridge therefore accepts only the names of this machine: localhost, names that end in .localhost,
loopback addresses, and TAILRACE_ALLOWED_HOSTS.

Does not depend on the error format of a route.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from http_bridge.errors import ApiError
from tailrace_shared.variables import PREFIX

# `host`, `host:port` or `[ipv6]:port`; a port may be empty, as in RFC 3986.
_AUTHORITY = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:@/?#\s]+))(?::\d{0,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)
# The Workers runtime and Cloudflare's SDKs address the AI binding by these names, regardless of the service that it is
# bound to.
_BINDING_HOSTS = ("workers-binding.ai", "ai.cloudflare.com")
_MAX_SHOWN = 100  # longest part of a refused name in an error, in characters

# Returns the ASGI application that answers a request with an error, in the error format of the request's route.
Refuse = Callable[[Scope, ApiError], ASGIApp]


class HostNames:
    """The host names that requests may use."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        """Accept the names of this machine and the names in `allowed`.

        Args:
            allowed: Names or IP addresses without a port. `.example.com` accepts every name below example.com, `*` any name.
        """
        names = [_normalized(name.strip("[]")) for name in allowed]
        self._accepts_any = "*" in names
        self._names = {"localhost", *names}
        self._suffixes = (".localhost", *(name for name in names if name.startswith(".")))

    def accepts(self, authority: str) -> bool:
        """Return True if requests may name `authority`: `host` or `host:port`, IPv6 addresses in brackets."""
        if self._accepts_any:
            return True
        found = _AUTHORITY.fullmatch(authority)
        if found is None:
            return False
        name = _normalized(found[1] or found[2])
        return name in self._names or name.endswith(self._suffixes) or _is_loopback_address(name)


class AllowedHosts:
    """ASGI middleware that answers 403 if the Host header, or the authority of an absolute target, is not accepted.

    A request without a Host header is accepted: browsers always send one, and HTTP/1.1 requests without one are refused
    earlier.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        names: HostNames,
        has_tokens: bool,
        binding_port: int | None,
        open_paths: frozenset[str],
        is_binding_path: Callable[[str], bool],
        refuse: Refuse,
    ) -> None:
        """Check the requests to `app`.

        Args:
            app: The application that receives accepted requests.
            names: The names that are accepted.
            has_tokens: Whether requests need an API token. Pages of other sites have no token, so names are not
                checked then.
            binding_port: Port of the listener of the Worker binding. This listener never needs a token, so its requests
                are always checked.
            open_paths: Paths that are not checked on the main listener: health probes, which use a pod's or a
                container's own address and whose answers contain no data.
            is_binding_path: Returns True for the paths that the Workers runtime requests under its own host names.
            refuse: Answers a request that is not accepted.
        """
        self._app = app
        self._names = names
        self._has_tokens = has_tokens
        self._binding_port = binding_port
        self._open_paths = open_paths
        self._is_binding_path = is_binding_path
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and self._is_checked(scope):
            refused = [name for name in _authorities(scope) if name and not self._is_accepted(name, scope)]
            if refused:
                app = self._refuse(scope, _refusal(refused[0]))
        await app(scope, receive, send)

    def _is_checked(self, scope: Scope) -> bool:
        server = scope.get("server")
        if self._binding_port is not None and server is not None and server[1] == self._binding_port:
            return True
        return not self._has_tokens and scope["path"] not in self._open_paths

    def _is_accepted(self, authority: str, scope: Scope) -> bool:
        if self._names.accepts(authority):
            return True
        # Browsers send an Origin with every POST and with every request to another site, and pages cannot remove it.
        is_page = any(name == b"origin" for name, _ in scope["headers"])
        return not is_page and _normalized(authority) in _BINDING_HOSTS and self._is_binding_path(scope["path"])


def _authorities(scope: Scope) -> list[str]:
    """Return the values of all Host headers, and the authority of an absolute-form target (`GET http://host/path`)."""
    values = [value for name, value in scope["headers"] if name == b"host"]
    if target := _ABSOLUTE.match(scope.get("raw_path") or b""):
        values.append(target[1])
    return [value.decode("latin-1") for value in values]


def _normalized(name: str) -> str:
    # A final dot marks a fully qualified name. It is removed before names are compared.
    return name.lower().removesuffix(".")


def _is_loopback_address(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _refusal(authority: str) -> ApiError:
    return ApiError(
        403,
        9109,
        f"The host {authority[:_MAX_SHOWN]!r} is not accepted: requests without an API token may name localhost and loopback "
        f"addresses only. Add the name to {PREFIX}ALLOWED_HOSTS to accept it.",
    )
