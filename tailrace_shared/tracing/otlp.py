"""Export of spans with OpenTelemetry's SDK, which its own OTEL_* variables configure.

OpenTelemetry is imported only if an endpoint is set. A thread of the SDK sends the spans: no request waits for the
collector, its failures are logged rarely, and they delay the end of the process by a few seconds at most.
"""

import asyncio
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from tailrace_shared.config_errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

# Longest wait for the last spans when the process ends.
FLUSH_SECONDS = 3.0
# Shortest time between two equal log lines of OpenTelemetry.
_REPEAT_SECONDS = 600.0
_SDK_LOGGER = logging.getLogger("opentelemetry")
logger = logging.getLogger(__name__)

Tracing = TypeVar("Tracing")


def tracing_from_environment(
    disabled: Callable[[], Tracing], enabled: Callable[[str], Tracing], *, extra: str
) -> Tracing:
    """Return `enabled(endpoint)` if the environment sets an OTLP endpoint and no variable disables traces.

    Otherwise, return `disabled()`.

    Args:
        disabled: Returns the result if traces are off.
        enabled: Returns the result for an endpoint; imports OpenTelemetry.
        extra: The service's extra of the Python package, for the message about a missing installation.

    Raises:
        ConfigurationError: OpenTelemetry is not installed, or its variables are invalid.
    """
    endpoint = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or variable("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint or variable("OTEL_SDK_DISABLED").lower() == "true" or variable("OTEL_TRACES_EXPORTER") == "none":
        return disabled()
    if not re.match("https?://", endpoint):
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}: it must begin with http:// or https://.")
    try:
        return enabled(endpoint)
    except ImportError:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: "
            f"run pip install '.[{extra},traces]' in the clone."
        ) from None
    except Exception as error:  # the SDK's exceptions have no common class
        raise ConfigurationError(f"OpenTelemetry does not accept its OTEL_* variables: {error}.") from None


class SpanSender:
    """A tracer whose spans are sent to a collector in the background."""

    def __init__(self, service_name: str, endpoint: str) -> None:
        """Set up the SDK.

        Args:
            service_name: `service.name` of the spans unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES has one.
            endpoint: URL of the collector, for log lines; the SDK reads the variable itself.
        """
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._log_handler = _RateLimitedHandler()
        named = OTELResourceDetector().detect().attributes.get("service.name", service_name)
        # close() flushes: at exit the SDK itself would try for half a minute.
        provider = TracerProvider(resource=Resource.create({"service.name": named}), shutdown_on_exit=False)
        self._exporter = _exporter()
        self._processor = BatchSpanProcessor(self._exporter)
        provider.add_span_processor(self._processor)
        self.tracer: Tracer = provider.get_tracer("tailrace")
        # The endpoint without a user name and password.
        self.destination = re.sub("//.*@", "//", endpoint)

    async def close(self) -> None:
        """Send the remaining spans; wait FLUSH_SECONDS at most."""
        await asyncio.to_thread(self._flush)

    def _flush(self) -> None:
        flushing = threading.Thread(target=self._processor.shutdown, name="traces", daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)
        if flushing.is_alive():
            logger.warning("the last traces are lost: %s did not accept them in %g s", self.destination, FLUSH_SECONDS)
            self._log_handler.setLevel(logging.CRITICAL)  # the SDK would log the same again
            self._exporter.shutdown()


def variable(name: str) -> str:
    """Return the value of an environment variable without surrounding spaces; empty if it is not set."""
    return os.environ.get(name, "").strip()


def _exporter() -> "SpanExporter":
    name = "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or variable(name) or "grpc"
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter()
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter()
    raise ValueError(f"{name}={protocol} must be grpc or http/protobuf")


class _RateLimitedHandler(logging.Handler):
    """Passes on OpenTelemetry's log records, each distinct one at most once in ten minutes."""

    def __init__(self) -> None:
        super().__init__()
        self._logged: dict[tuple[str, str], float] = {}
        _SDK_LOGGER.handlers = [self]
        _SDK_LOGGER.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        key = (record.name, str(record.msg))
        if now - self._logged.get(key, -_REPEAT_SECONDS) >= _REPEAT_SECONDS:
            self._logged[key] = now
            record.exc_info = None  # the log line needs no traceback
            logger.handle(record)
