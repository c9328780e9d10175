"""Runs loads on Tailrace's engine, without gRPC and HTTP."""

import asyncio
import time
from typing import Any

from benchmarks.launch_server import hosting_without_end_tokens
from benchmarks.load.load import Load, Record, Request
from benchmarks.workers.serve import Answer, serve
from inference_server.generation import Completed, Delta, Failed, GenerationRequest, SamplingParams
from inference_server.serving.catalog import read_catalog
from inference_server.serving.hosted_model import HostedModel
from inference_server.settings.server import Settings


async def _one(hosted: HostedModel, number: int, request: Request) -> Record:
    record = Record(start=time.perf_counter())
    wanted = GenerationRequest(
        request_id=str(number),
        prompt_ids=request.prompt_ids,
        sampling=SamplingParams(seed=1, temperature=0.0, ignore_eos=True),
        max_tokens=request.max_tokens,
    )
    async with hosted.submit(wanted) as reply:
        async for event in reply:
            if isinstance(event, Delta):
                record.events.append(time.perf_counter())
                record.text += event.text
            elif isinstance(event, Completed):
                record.prompt_tokens = event.usage.prompt_tokens
                record.completion_tokens = event.usage.completion_tokens
            elif isinstance(event, Failed):
                record.error = str(event.error)
    return record


async def _ask(hosted: HostedModel, load: Load) -> list[Record]:
    calls = [_one(hosted, number, request) for number, request in enumerate(load.requests)]
    async with asyncio.timeout(load.timeout_s):
        return [await call for call in calls] if load.sequential else await asyncio.gather(*calls)


def _load_engine(options: dict[str, Any]) -> Answer:
    hosting = hosting_without_end_tokens()
    loop = asyncio.new_event_loop()
    settings = Settings.from_environment()
    hosted = loop.run_until_complete(hosting.load_all(read_catalog(settings.catalog), settings, lambda: None))
    model = next(iter(hosted.values()))
    return lambda load: loop.run_until_complete(_ask(model, load))


if __name__ == "__main__":
    serve(_load_engine)
