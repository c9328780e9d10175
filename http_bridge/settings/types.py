"""The types of the bridge's settings, with the checks of their values. A check raises ValueError with a clause for the user."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from http_bridge.protocol.grpc_targets import GRPC_SCHEMES, split_targets
from tailrace_shared.addresses import is_loopback, split_address

# A name, an IP address, or `.name` for every name below it; `*` for any.
_HOST = re.compile(r"\*|\.?[\w-]+(\.[\w-]+)*\.?|\[?[0-9a-fA-F]*:[0-9a-fA-F:.]+\]?", re.ASCII)


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _check_address(value: str) -> str:
    if value:
        split_address(value)
    return value


def _check_loopback_address(value: str) -> str:
    if value and not is_loopback(split_address(value)[0]):
        raise ValueError("it needs no token, so it must be a loopback address, for example 127.0.0.1:8789")
    return value


def _check_targets(value: str) -> str:
    targets = split_targets(value)
    for target in targets:
        if not target.startswith(GRPC_SCHEMES):
            if split_address(target)[1] == 0:
                raise ValueError("port 0 cannot be called")
        elif len(targets) > 1:
            raise ValueError(f"{target} is in gRPC's notation, which must be the only target")
    if not targets:
        raise ValueError("it contains no address")
    return value


def _check_token(value: str) -> str:
    if not all("!" <= character <= "~" for character in value):
        raise ValueError("a token may contain printable ASCII characters only, and no space")
    return value


def _check_tokens(value: tuple[str, ...]) -> tuple[str, ...]:
    for token in value:
        _check_token(token)
    return value


def _check_origins(value: tuple[str, ...]) -> tuple[str, ...]:
    for origin in value:
        scheme, separator, host = origin.partition("://")
        if origin != "*" and not (scheme and separator and host and "/" not in host):
            raise ValueError(f"{origin!r} is not an origin; write it like https://example.com")
    return value


def _check_hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    for host in value:
        if not _HOST.fullmatch(host):
            raise ValueError(
                f"{host!r} is not a host name; write it like tailrace.example, .example.com or 10.0.0.5, without "
                "scheme and port"
            )
    return value


Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Address = Annotated[str, AfterValidator(_check_address)]
LoopbackAddress = Annotated[str, AfterValidator(_check_loopback_address)]
Targets = Annotated[str, AfterValidator(_check_targets)]
Token = Annotated[str, AfterValidator(_check_token)]
# In the environment, the words are separated by commas.
_Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Tokens = Annotated[_Words, AfterValidator(_check_tokens)]
Hosts = Annotated[_Words, AfterValidator(_check_hosts)]
Origins = Annotated[_Words, AfterValidator(_check_origins)]
# For settings that accept their values in any case.
LOWER_CASE = BeforeValidator(_lower)
