"""Whether there are traces, and where they go: OpenTelemetry's SDK, set up by its own OTEL_* variables.

Nothing of OpenTelemetry is imported unless an endpoint is set. Sending is a thread of the SDK's: whatever the collector
does, no request waits for it, the log tells it rarely, and the end of the process some seconds at most.
"""

import asyncio
import logging
import os
import re
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from inference_server.errors import ConfigurationError
from inference_server.observability.tracing.base import Metadata, RunTrace, Tracing
from tailrace.v1.inference_pb2 import RunRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_SERVICE_NAME = "tailrace-server"
_INSTALL = "pip install '.[server,traces]'"
# How long the end waits for the last spans, and how long until the log repeats what OpenTelemetry says.
FLUSH_SECONDS = 3.0
_REPEAT_SECONDS = 600.0
_SDK_LOGGER = logging.getLogger("opentelemetry")
_logger = logging.getLogger(__name__)


def tracing_from_environment() -> Tracing:
    """Traces if OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT) is set and OpenTelemetry is not switched off.

    Raises ConfigurationError if it is not installed, or if it cannot be set up as its variables say.
    """
    endpoint = _variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or _variable("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint or _variable("OTEL_SDK_DISABLED").lower() == "true" or _variable("OTEL_TRACES_EXPORTER") == "none":
        return Tracing()
    if not re.match("https?://", endpoint):
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}: it must begin with http:// or https://.")
    try:
        return Exported(endpoint)
    except ImportError:
        raise ConfigurationError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, but OpenTelemetry is missing: {_INSTALL}."
        ) from None
    except Exception as error:  # what the SDK thinks of its variables; its exceptions have no common class
        raise ConfigurationError(f"OpenTelemetry does not take its OTEL_* variables: {error}.") from None


class Exported(Tracing):
    """Spans that go to a collector."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from inference_server.observability.tracing.spans import SpanTrace

        self._sparing = _Sparing()
        named = OTELResourceDetector().detect().attributes.get("service.name", _SERVICE_NAME)
        # Ended below: at the exit, the SDK would try for half a minute.
        provider = TracerProvider(resource=Resource.create({"service.name": named}), shutdown_on_exit=False)
        self._exporter = _exporter()
        self._processor = BatchSpanProcessor(self._exporter)
        provider.add_span_processor(self._processor)
        self._place = re.sub("//.*@", "//", endpoint)
        # The variable of OpenTelemetry's own instrumentations, with the values of all their ages.
        text = _variable("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT").lower()
        self._has_text = text in ("true", "span_only", "span_and_event")
        self._trace = partial(SpanTrace, provider.get_tracer("tailrace"), has_text=self._has_text)

    def run(self, request: RunRequest, request_id: str, metadata: Metadata) -> RunTrace:
        trace = self._trace(request, request_id, metadata)
        return trace if trace.is_recording else super().run(request, request_id, metadata)

    def start(self) -> None:
        _logger.info(
            "traces go to %s%s", self._place, ", with the text of prompts and replies" if self._has_text else ""
        )

    async def close(self) -> None:
        await asyncio.to_thread(self._flush)

    def _flush(self) -> None:
        flushing = threading.Thread(target=self._processor.shutdown, name="traces", daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)
        if flushing.is_alive():
            _logger.warning("the last traces are lost: %s did not take them within %g s", self._place, FLUSH_SECONDS)
            self._sparing.setLevel(logging.CRITICAL)  # no more sentences about the same
            self._exporter.shutdown()


def _exporter() -> "SpanExporter":
    name = "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = _variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or _variable(name) or "grpc"
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter()
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter()
    raise ValueError(f"{name}={protocol} must be grpc or http/protobuf")


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()


class _Sparing(logging.Handler):
    """Passes on what OpenTelemetry logs, but the same only once in ten minutes: a collector may be away for days."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[tuple[str, str], float] = {}
        _SDK_LOGGER.handlers = [self]
        _SDK_LOGGER.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        key = (record.name, str(record.msg))
        if now - self._told.get(key, -_REPEAT_SECONDS) >= _REPEAT_SECONDS:
            self._told[key] = now
            record.exc_info = None  # a sentence is enough
            _logger.handle(record)
