"""Checks which services are installed here, without importing them."""

import importlib.util

from tailrace_cli.doctor.finding import Finding

MISSING_SERVER = Finding(None, "the inference server is not installed here")
MISSING_BRIDGE = Finding(None, "the bridge is not installed here")


def has_server() -> bool:
    """Return True if the packages of the inference server are installed."""
    return _is_installed("torch", "pydantic_settings")


def has_bridge() -> bool:
    """Return True if the packages of the bridge are installed."""
    return _is_installed("starlette", "pydantic_settings")


def _is_installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)
