"""A collector for tests: a real gRPC server that receives spans over OTLP and keeps them."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


class Collected:
    """A span as it was received."""

    def __init__(self, span: Span, service: str) -> None:
        self.span = span
        self.service = service
        self.attributes = {pair.key: _value(pair.value) for pair in span.attributes}
        self.events = [event.name for event in span.events]
        self.is_error = span.status.code == Status.STATUS_CODE_ERROR

    @property
    def kind(self) -> str:
        return Span.SpanKind.Name(self.span.kind).removeprefix("SPAN_KIND_")


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[Collected] = []
        self.headers: dict[str, str] = {}

    def Export(self, request, context):
        self.headers = dict(context.invocation_metadata())
        for group in request.resource_spans:
            service = next(pair.value.string_value for pair in group.resource.attributes if pair.key == "service.name")
            self.spans += [Collected(span, service) for scope in group.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    async def named(self, *names: str) -> list[Collected]:
        """Wait for spans by the words of `_word`, and return one for each. Raises TimeoutError."""
        async with asyncio.timeout(5):
            while not set(names) <= set(found := {_word(span.span.name): span for span in [*self.spans]}):
                await asyncio.sleep(0.01)
        return [found[name] for name in names]


@contextmanager
def collecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Run a collector to which services started in the block send their spans without delay."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    try:
        yield collector
    finally:
        server.stop(None)


def _word(name: str) -> str:
    """Return the operation in a span's name: POST, chat, queue, or a gRPC method's last part."""
    return name.partition(" ")[0].rpartition("/")[2]


def _value(value: common_pb2.AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)
