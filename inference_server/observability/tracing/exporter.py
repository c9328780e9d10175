"""Exports traces of runs and embedding requests with OpenTelemetry if the OTEL_* variables set an endpoint."""

import logging
from functools import partial

from inference_server.observability.tracing.base import EmbedTrace, Metadata, NullTracing, RunTrace
from tailrace.v1.inference_pb2 import EmbedRequest, RunRequest
from tailrace_shared.tracing import otlp

logger = logging.getLogger(__name__)
_TEXT_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


def tracing_from_environment() -> NullTracing:
    """Return tracing with export if the environment has an OTLP endpoint, else tracing that does nothing.

    Raises:
        ConfigurationError: OpenTelemetry is not installed, or its variables are invalid.
    """
    return otlp.tracing_from_environment(NullTracing, OtlpTracing, extra="server")


class OtlpTracing(NullTracing):
    """Factory of traces whose spans are sent to an OTLP collector."""

    def __init__(self, endpoint: str) -> None:
        from inference_server.observability.tracing.embed_span import EmbedSpan
        from inference_server.observability.tracing.spans import SpanTrace

        self._sender = otlp.SpanSender("tailrace-server", endpoint)
        # OpenTelemetry's own instrumentations use this variable; its values differ between their versions.
        self._has_text = otlp.variable(_TEXT_VARIABLE).lower() in ("true", "span_only", "span_and_event")
        self._trace = partial(SpanTrace, self._sender.tracer, has_text=self._has_text)
        self._embed_trace = partial(EmbedSpan, self._sender.tracer)

    def run(self, request: RunRequest, request_id: str, metadata: Metadata) -> RunTrace:
        """Return a trace for one run; it does nothing if the run is not sampled."""
        trace = self._trace(request, request_id, metadata)
        return trace if trace.is_recording else super().run(request, request_id, metadata)

    def embed(self, request: EmbedRequest, request_id: str, metadata: Metadata) -> EmbedTrace:
        """Return a trace for one embedding request; it does nothing if the request is not sampled."""
        trace = self._embed_trace(request, request_id, metadata)
        return trace if trace.is_recording else super().embed(request, request_id, metadata)

    def start(self) -> None:
        """Log the destination of the traces."""
        text = ", with the text of prompts and replies" if self._has_text else ""
        logger.info("traces go to %s%s", self._sender.destination, text)

    async def close(self) -> None:
        """Send the remaining spans."""
        await self._sender.close()
