"""The load reports that balancers get, requested as gRPC's own clients do. No model is loaded."""

import asyncio
import struct

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo

from inference_server.grpc_api.load_report import IDLE, LoadReporter

METHOD = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics"


class Reporting:
    def __init__(self) -> None:
        self.utilization = 0.0
        self.reporter = LoadReporter(lambda: self.utilization)
        self.server = grpc.aio.server()
        self.reporter.add_to(self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"


@pytest.fixture
async def reporting():
    reporting = Reporting()
    await reporting.server.start()
    yield reporting
    await reporting.server.stop(None)


@pytest.fixture
async def reports(reporting):
    """Return the stream of a client that requested a report every 100 ms."""
    request = RetryInfo()
    request.retry_delay.FromMilliseconds(100)
    async with grpc.aio.insecure_channel(reporting.address) as channel:
        yield channel.unary_stream(METHOD, RetryInfo.SerializeToString)(request, timeout=30)


async def test_report_is_a_constant_rate_and_the_utilisation(reporting, reports):
    reporting.utilization = 0.375
    report = await reports.read()
    assert struct.unpack("<BdBd", report) == (0x31, 1.0, 0x49, 0.2 + 0.8 * 0.375)


async def test_an_idle_server_reports_a_small_load(reporting, reports):
    assert (await reports.read())[-8:] == struct.pack("<d", IDLE)


async def test_reports_have_the_requested_interval(reporting, reports):
    await reports.read()
    reporting.utilization = 2.5
    async with asyncio.timeout(5):
        # A busy machine may have sent a report before the change.
        while (await reports.read())[-8:] != struct.pack("<d", 2.5):
            pass


async def test_streams_end_when_the_server_stops(reporting, reports):
    await reports.read()
    reporting.reporter.stop()
    async with asyncio.timeout(5):
        while await reports.read() is not grpc.aio.EOF:
            pass
