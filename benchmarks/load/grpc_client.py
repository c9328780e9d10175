"""Requests streams from the inference server over gRPC, as an internal service would.

Runs as a separate process with JSON input and output.
"""

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING

import grpc

from benchmarks.load.load import Load, Outcome, Record, Request
from tailrace.v1.inference_pb2 import Chat, ChatTurn, RunRequest, Sampling
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub

if TYPE_CHECKING:  # the stubs of grpc.aio exist for type checkers only
    from tailrace.v1.inference_pb2_grpc import InferenceServiceAsyncStub


def _run_request(model: str, request: Request) -> RunRequest:
    sampling = Sampling(max_tokens=request.max_tokens, temperature=0)
    if request.messages is None:
        return RunRequest(model=model, text=request.text, sampling=sampling)
    turns = [ChatTurn(role=turn["role"], content=turn["content"]) for turn in request.messages]
    return RunRequest(model=model, chat=Chat(turns=turns), sampling=sampling)


async def _one(stub: "InferenceServiceAsyncStub", model: str, request: Request, timeout_s: float) -> Record:
    record = Record(start=time.perf_counter())
    texts = []
    try:
        async for event in stub.Run(_run_request(model, request), timeout=timeout_s):
            if event.HasField("delta"):
                record.events.append(time.perf_counter())
                texts.append(event.delta.text)
            elif event.HasField("completed"):
                record.prompt_tokens = event.completed.usage.prompt_tokens
                record.completion_tokens = event.completed.usage.completion_tokens
    except grpc.aio.AioRpcError as error:
        record.error = f"{error.code().name}: {error.details()}"
    record.text = "".join(texts)
    return record


async def ask(address: str, model: str, load: Load) -> list[Record]:
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        stub: InferenceServiceAsyncStub = InferenceServiceStub(channel)
        calls = [_one(stub, model, request, load.timeout_s) for request in load.requests]
        if load.sequential:
            return [await call for call in calls]
        return await asyncio.gather(*calls)


def main() -> None:
    question = json.load(sys.stdin)
    load = Load.from_json(question["load"])
    before = time.process_time()
    records = asyncio.run(ask(question["address"], question["model"], load))
    print(json.dumps(Outcome(records=records, client_cpu_s=time.process_time() - before).to_json()))


if __name__ == "__main__":
    main()
