"""Serves the gRPC API with an engine that needs no computing time, so that measurements show only the cost of the bridge.

The reply to a prompt that begins with "paced" has a token every 25 ms, like a reply from a real batch. Any other reply
is sent as fast as gRPC allows. Runs as a separate process; the address comes from TAILRACE_GRPC_ADDRESS.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tailrace.v1.inference_pb2 import Completed, Delta, FinishReason, RunRequest, RunResponse, Started, Usage
from tailrace.v1.inference_pb2_grpc import InferenceServiceServicer, add_InferenceServiceServicer_to_server

PACE_SECONDS = 0.025
_DELTA = RunResponse(delta=Delta(text=" token", tokens=1))


class InstantServicer(InferenceServiceServicer):
    """A servicer that implements only `Run`."""

    async def Run(self, request: RunRequest, context: Any) -> AsyncIterator[RunResponse]:
        request_id = dict(context.invocation_metadata()).get("x-request-id", "instant")
        await context.send_initial_metadata((("x-request-id", request_id),))
        yield RunResponse(started=Started(request_id=request_id, model=request.model, prompt_tokens=1, seed=1))
        loop = asyncio.get_running_loop()
        is_paced = request.text.startswith("paced")
        for _ in range(request.sampling.max_tokens):
            if is_paced:  # all streams send at the same moments, like the sequences of a batch
                await asyncio.sleep(PACE_SECONDS - loop.time() % PACE_SECONDS)
            yield _DELTA
        usage = Usage(prompt_tokens=1, completion_tokens=request.sampling.max_tokens)
        yield RunResponse(completed=Completed(finish_reason=FinishReason.FINISH_REASON_LENGTH, usage=usage))


async def serve() -> None:
    server = grpc.aio.server()
    add_InferenceServiceServicer_to_server(InstantServicer(), server)  # type: ignore[abstract]  # only Run is called
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    await checks.set("tailrace.v1.InferenceService", health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(os.environ["TAILRACE_GRPC_ADDRESS"])
    await server.start()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(serve())
