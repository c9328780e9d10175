"""Traces of the bridge's runs, exported with OpenTelemetry if its variables set an endpoint."""

import logging
from functools import partial

from starlette.types import ASGIApp

from http_bridge.observability.tracing.base import NullTracing
from tailrace_shared.tracing import otlp

logger = logging.getLogger(__name__)


def tracing_from_environment() -> NullTracing:
    """Return tracing with export if the environment has an OTLP endpoint, else tracing that does nothing.

    Raises:
        ConfigurationError: OpenTelemetry is not installed, or its variables are invalid.
    """
    return otlp.tracing_from_environment(NullTracing, OtlpTracing, extra="bridge")


class OtlpTracing(NullTracing):
    """Tracing that sends spans to a collector."""

    def __init__(self, endpoint: str) -> None:
        from http_bridge.observability.tracing.spans import TracedApp

        self._sender = otlp.SpanSender("tailrace-bridge", endpoint)
        self._around = partial(TracedApp, tracer=self._sender.tracer)

    def around(self, app: ASGIApp) -> ASGIApp:
        """Wrap an endpoint so that each request is traced."""
        return self._around(app)

    def start(self) -> None:
        """Log the destination of the traces."""
        logger.info("traces go to %s", self._sender.destination)

    async def close(self) -> None:
        """Send the remaining spans."""
        await self._sender.close()
