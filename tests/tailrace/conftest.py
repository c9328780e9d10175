"""Both doors of a real bridge before a real gRPC server with scripted replies, for both clients."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tailrace import AsyncClient, Client
from tests.http_bridge.conftest import backend, servicer, short_pauses, start_bridge

__all__ = ["backend", "servicer", "short_pauses", "start_bridge"]
SETTINGS = ("URL", "TOKEN", "ACCOUNT", "GRPC_TOKEN", "GRPC_TLS_CA", "GRPC_TLS_CLIENT_CERT", "GRPC_TLS_CLIENT_KEY")
MODEL = "@cf/meta/llama-2-7b-chat-int8"


@pytest.fixture(autouse=True)
def no_settings_of_the_developer(monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(f"TAILRACE_{name}", raising=False)
    monkeypatch.delenv("TRACEPARENT", raising=False)
    monkeypatch.setattr("tailrace.attempts._FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture(params=["rest", "grpc"])
async def url(request, backend, start_bridge) -> str:
    """Return the address of one of the doors."""
    if request.param == "grpc":
        return f"grpc://{backend.address}"
    return f"http://127.0.0.1:{(await start_bridge()).port}"


@pytest.fixture
async def client(url):
    """Return a blocking client with a default model. The servers run in this process: call it in another thread."""
    with Client(url, model=MODEL) as client:
        yield client


@pytest.fixture
async def async_client(url):
    async with AsyncClient(url, model=MODEL) as client:
        yield client


@pytest.fixture
def in_thread() -> Callable[..., Any]:
    """Return a function that calls another one in a thread, so that the event loop can serve its requests."""

    async def call(function: Callable[..., Any], *arguments: object, **options: object) -> Any:
        async with asyncio.timeout(20):
            return await asyncio.to_thread(function, *arguments, **options)

    return call
