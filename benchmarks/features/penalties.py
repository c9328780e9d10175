"""`python -m benchmarks.features.penalties`: measures the cost of sampling parameters with many streams.

One server decodes replies of equal length over gRPC. Each round measures several sets of sampling parameters, first the
temperature alone. For each set, the script prints two ratios to the temperature alone, as medians over the rounds: the
ratio of the wall-clock time, and the ratio of the server's CPU time. The CPU time is more reliable on a machine that
other processes use too. Requires Linux.
"""

import argparse
import asyncio
import statistics
import time
from typing import TYPE_CHECKING

import grpc

from benchmarks import machine
from benchmarks.features.loops import QUESTIONS, sampling_of
from benchmarks.features.server import cpu_seconds, running_server, wait_for_models
from tailrace.v1 import inference_pb2 as pb
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub

if TYPE_CHECKING:  # the stubs of grpc.aio exist for type checkers only
    from tailrace.v1.inference_pb2_grpc import InferenceServiceAsyncStub

_ENTRY = "@cf/meta/llama-2-7b-chat-int8"
_PLAIN = "temperature=0.6"
_CASES = (
    _PLAIN,
    f"{_PLAIN},repetition_penalty=1.1",
    f"{_PLAIN},frequency_penalty=0.2",
    f"{_PLAIN},top_p=0.9",
    f"{_PLAIN},frequency_penalty=0.2,top_p=0.9",
)


async def _measure(address: str, server_pid: int, arguments: argparse.Namespace) -> None:
    times: dict[str, list[tuple[float, float]]] = {case: [] for case in _CASES}
    async with grpc.aio.insecure_channel(address) as channel:
        stub = InferenceServiceStub(channel)
        await wait_for_models(stub)
        await _decode(stub, _PLAIN, arguments)
        for _ in range(arguments.rounds):
            for case, found in times.items():
                start, cpu_start = time.perf_counter(), cpu_seconds(server_pid)
                await _decode(stub, case, arguments)
                found.append((time.perf_counter() - start, cpu_seconds(server_pid) - cpu_start))
    print(f"{machine.describe()['cpu']}, {arguments.streams} streams of {arguments.tokens} tokens")
    for case, found in times.items():
        wall, cpu = (
            statistics.median(mine[part] / plain[part] for mine, plain in zip(found, times[_PLAIN], strict=True))
            for part in (0, 1)
        )
        print(f"{case}: time {wall:.3f}, CPU time {cpu:.3f} of that with {_PLAIN}")


async def _decode(stub: "InferenceServiceAsyncStub", case: str, arguments: argparse.Namespace) -> None:
    async def reply(index: int) -> None:
        sampling = sampling_of(case, seed=index + 1)
        sampling.max_tokens = arguments.tokens
        chat = pb.Chat(turns=[pb.ChatTurn(role="user", content=QUESTIONS[index % len(QUESTIONS)])])
        async for _ in stub.Run(pb.RunRequest(model=arguments.model, chat=chat, sampling=sampling)):
            pass

    await asyncio.gather(*map(reply, range(arguments.streams)))


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features.penalties", description=__doc__)
    parser.add_argument("--model", default=_ENTRY, help=f"entry of the default catalog (default {_ENTRY})")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all parameters (default 5)")
    parser.add_argument("--streams", type=int, default=32, help="replies at a time (default 32)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a reply (default 128)")
    arguments = parser.parse_args()
    with running_server(arguments.model, "penalties") as (address, server_pid):
        asyncio.run(_measure(address, server_pid, arguments))


if __name__ == "__main__":
    main()
