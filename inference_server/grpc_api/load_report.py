"""Tells balancers how loaded this server is: gRPC's out-of-band load reports (ORCA, gRFC A51).

A client that balances with `weighted_round_robin` holds one stream to each server and sends it calls in inverse
proportion to what is reported there. Knows a number between 0 and more than 1; knows nothing of where it comes from.
"""

import asyncio
import contextlib
import struct
from collections.abc import Callable

import grpc
from google.rpc.error_details_pb2 import RetryInfo

from inference_server.grpc_api.status import Context

SERVICE = "xds.service.orca.v3.OpenRcaService"
# What an idle server reports. 0 would count as no report at all, and near 0 one request more would halve a server's share:
# reports are up to a second old, and what comes in that time would all go to one server.
IDLE = 0.2
# More often than that nobody gets it, whatever was asked for.
LEAST_INTERVAL_SECONDS = 0.1
_DEFAULT_INTERVAL_SECONDS = 1.0

# OrcaLoadReport on the wire: rps_fractional (field 6) and application_utilization (field 9), both doubles. Weights are
# their quotient, so with a constant rate a weight is the inverse of the utilisation.
_REPORT = struct.Struct("<BdBd")
_RPS_TAG, _UTILIZATION_TAG = 6 << 3 | 1, 9 << 3 | 1
_RATE = 1.0


class LoadReporter:
    """The service. `utilization`: what is in use of what there is; above 1 when requests wait."""

    def __init__(self, utilization: Callable[[], float]) -> None:
        self._utilization = utilization
        self._stopping = asyncio.Event()

    def add_to(self, server: grpc.aio.Server) -> None:
        # OrcaLoadReportRequest and RetryInfo are the same on the wire as far as is read here: a Duration as field 1.
        handler = grpc.unary_stream_rpc_method_handler(self._reports, RetryInfo.FromString, _encoded)
        handlers = grpc.method_handlers_generic_handler(SERVICE, {"StreamCoreMetrics": handler})
        server.add_generic_rpc_handlers((handlers,))

    def stop(self) -> None:
        """End every stream: one that stays open would hold up the end of the server."""
        self._stopping.set()

    def level(self) -> float:
        """What is reported at the moment: IDLE with nothing to do, 1 with nothing free, more when requests wait."""
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
