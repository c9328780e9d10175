"""Reports this server's load to load balancers: gRPC's out-of-band load reports (ORCA, gRFC A51).

A client that balances with `weighted_round_robin` keeps one stream to each server. It distributes its calls in inverse
proportion to the reported utilization. This module does not measure the load.
"""

import asyncio
import contextlib
import struct
from collections.abc import Callable

import grpc
from google.rpc.error_details_pb2 import RetryInfo

from inference_server.grpc_api.status import Context

SERVICE = "xds.service.orca.v3.OpenRcaService"
# Utilization that an idle server reports. Clients treat 0 as a missing report. Near 0, one more request would halve a
# server's weight. Until the next report, nearly all requests would then go to one idle server.
IDLE = 0.2
# Shortest interval between two reports, in seconds; a client that requests a shorter one gets this one.
LEAST_INTERVAL_SECONDS = 0.1
_DEFAULT_INTERVAL_SECONDS = 1.0

# The encoding of OrcaLoadReport: rps_fractional (field 6) and application_utilization (field 9), both doubles. Clients
# use rps_fractional / application_utilization as the server's weight. With the constant _RATE, the weight is the
# inverse of the utilization.
_REPORT = struct.Struct("<BdBd")
_RPS_TAG, _UTILIZATION_TAG = 6 << 3 | 1, 9 << 3 | 1
_RATE = 1.0


class LoadReporter:
    """The OpenRcaService of ORCA, which streams the server's utilization to each client that calls it."""

    def __init__(self, utilization: Callable[[], float]) -> None:
        """Create the service.

        Args:
            utilization: Returns the server's utilization, from 0; 1 at full load, more when requests wait.
        """
        self._utilization = utilization
        self._stopping = asyncio.Event()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service with a server that has not started."""
        # RetryInfo can parse an OrcaLoadReportRequest: the only field that is read, number 1, is a Duration in both.
        handler = grpc.unary_stream_rpc_method_handler(self._reports, RetryInfo.FromString, _encoded)
        handlers = grpc.method_handlers_generic_handler(SERVICE, {"StreamCoreMetrics": handler})
        server.add_generic_rpc_handlers((handlers,))

    def stop(self) -> None:
        """End every stream. An open stream would delay the server's shutdown."""
        self._stopping.set()

    def level(self) -> float:
        """Return the load that is reported now: IDLE without requests, 1 at full load, more when requests wait."""
        utilization = self._utilization()
        return max(utilization, IDLE + (1 - IDLE) * utilization)

    async def _reports(self, request: RetryInfo, context: Context) -> None:
        asked = request.retry_delay.seconds + request.retry_delay.nanos / 1e9
        interval = max(LEAST_INTERVAL_SECONDS, asked or _DEFAULT_INTERVAL_SECONDS)
        while not self._stopping.is_set():
            await context.write(self.level())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._stopping.wait()


def _encoded(utilization: float) -> bytes:
    return _REPORT.pack(_RPS_TAG, _RATE, _UTILIZATION_TAG, utilization)
