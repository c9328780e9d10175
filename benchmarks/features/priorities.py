"""`python -m benchmarks.features.priorities`: measures the time to first token of interactive requests beside a running batch.

Client and server use gRPC. Each round sends interactive requests twice: without other requests, and beside a batch of
requests of priority BATCH. Every round has both parts, because the speed of a shared machine changes by the minute.

For each request, the script records the time to its first token, and the server's CPU time until then. The CPU time is
the better figure on a machine that other processes use too. Linux favours a process that has just been idle, and
without a batch, the server is idle between requests. Requires Linux.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from benchmarks import machine
from benchmarks.features.server import READY_SECONDS, cpu_seconds, running_server, wait_for_models
from benchmarks.load.workload import Workload
from benchmarks.processes import PeerFailed
from inference_server.serving.catalog import read_catalog
from inference_server.settings.models import DEFAULT_CATALOG
from inference_server.settings.server import Settings
from inference_server.weights.download import local_folder
from tailrace.v1 import inference_pb2 as pb
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub

if TYPE_CHECKING:  # the stubs of grpc.aio exist for type checkers only
    from tailrace.v1.inference_pb2_grpc import InferenceServiceAsyncStub

_KINDS = ("ttft", "cpu")  # wall-clock time to the first token, and the server's CPU time
_ENTRY = "@cf/meta/llama-2-7b-chat-int8"
_TIMEOUT_SECONDS = 120.0
# Bounds of the pauses between interactive requests, in seconds. Pauses are random, so that the requests arrive at any
# moment of a step.
_PAUSES = 0.1, 0.4
# Time in which the batch fills the server's slots, and its first prompts are computed.
_SETTLING_SECONDS = 2.0


class _Client:
    """Sends interactive requests and batches, all with different prompts."""

    def __init__(
        self, stub: "InferenceServiceAsyncStub", workload: Workload, server_pid: int, arguments: argparse.Namespace
    ) -> None:
        self._stub, self._workload, self._arguments = stub, workload, arguments
        self._server_pid = server_pid
        self._random = random.Random(1)
        self.num_batch_tokens = 0

    async def interactive(self) -> list[tuple[float, float]]:
        """Send interactive requests one after the other, and return the milliseconds until the first token of each.

        Each pair contains the wall-clock time and the server's CPU time.
        """
        times = []
        for _ in range(self._arguments.requests):
            request = self._request(self._arguments.prompt, self._arguments.reply)
            start, first = (time.perf_counter(), cpu_seconds(self._server_pid)), None
            async for event in self._stub.Run(request, timeout=_TIMEOUT_SECONDS):
                if first is None and event.HasField("delta"):
                    first = time.perf_counter(), cpu_seconds(self._server_pid)
            if first is None:
                raise PeerFailed("a reply has no token")
            times.append(((first[0] - start[0]) * 1e3, (first[1] - start[1]) * 1e3))
            await asyncio.sleep(self._random.uniform(*_PAUSES))
        return times

    async def beside_batch(self) -> list[tuple[float, float]]:
        """Return the result of `interactive` beside a batch, which is cancelled at the end."""
        batch = [asyncio.create_task(self._batch_request()) for _ in range(self._arguments.batch)]
        try:
            await asyncio.sleep(_SETTLING_SECONDS)
            return await self.interactive()
        finally:
            if all(task.done() for task in batch):
                print("the batch was complete before the interactive requests", file=sys.stderr)
            for task in batch:
                task.cancel()
            await asyncio.gather(*batch, return_exceptions=True)

    async def _batch_request(self) -> None:
        request = self._request(self._arguments.batch_prompt, self._arguments.batch_reply)
        request.priority = pb.PRIORITY_BATCH
        async for event in self._stub.Run(request):
            self.num_batch_tokens += event.delta.tokens

    def _request(self, prompt_tokens: int, reply_tokens: int) -> pb.RunRequest:
        text, _ = self._workload.prompt(prompt_tokens)
        turn = pb.ChatTurn(role="user", content=text)
        sampling = pb.Sampling(max_tokens=reply_tokens, temperature=0)
        return pb.RunRequest(model=self._arguments.model, chat=pb.Chat(turns=[turn]), sampling=sampling)


async def _measure(address: str, server_pid: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rounds = []
    entry = next(entry for entry in read_catalog(DEFAULT_CATALOG) if entry.name == arguments.model)
    workload = Workload(Path(local_folder(entry.weights, Settings.from_environment().cache_dir)), "priorities")
    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), READY_SECONDS)
        client = _Client(InferenceServiceStub(channel), workload, server_pid, arguments)
        await wait_for_models(InferenceServiceStub(channel))
        await client.interactive()
        for number in range(arguments.rounds):
            alone = await client.interactive()
            before, start = client.num_batch_tokens, time.perf_counter()
            beside = await client.beside_batch()
            rate = (client.num_batch_tokens - before) / (time.perf_counter() - start)
            figures: dict[str, Any] = {"batch_tokens_per_s": round(rate, 1)}
            for index, kind in enumerate(_KINDS):
                for part, times in (("alone", alone), ("beside", beside)):
                    figures[f"{part}_{kind}_ms"] = [round(each[index], 1) for each in times]
            rounds.append(figures)
            print(f"round {number + 1}: batch {rate:.0f} tokens/s; {_summary([figures])}", flush=True)
    return rounds


def _summary(rounds: list[dict[str, Any]]) -> str:
    return "; ".join(
        f"{kind} p50 {alone:.1f} ms alone, {beside:.1f} ms beside the batch, ratio {beside / alone:.2f}"
        for kind, (alone, beside) in _medians(rounds).items()
    )


def _medians(rounds: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return two medians of each kind over all requests of `rounds`, in milliseconds: without and beside the batch."""

    def median(name: str) -> float:
        return float(statistics.median(time for figures in rounds for time in figures[name]))

    return {kind: (median(f"alone_{kind}_ms"), median(f"beside_{kind}_ms")) for kind in _KINDS}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features.priorities", description=__doc__)
    parser.add_argument("--model", default=_ENTRY, help=f"entry of the default catalog (default {_ENTRY})")
    parser.add_argument("--rounds", type=int, default=20, help="rounds, each without and with a batch (default 20)")
    parser.add_argument("--requests", type=int, default=6, help="interactive requests of each part (default 6)")
    parser.add_argument("--prompt", type=int, default=30, help="tokens of a question, from 12 (default 30)")
    parser.add_argument("--reply", type=int, default=8, help="tokens of an interactive reply (default 8)")
    parser.add_argument("--batch", type=int, default=200, help="requests of the batch (default 200)")
    parser.add_argument("--batch-prompt", type=int, default=100, help="tokens of a question of the batch (default 100)")
    parser.add_argument("--batch-reply", type=int, default=200, help="tokens of a reply of the batch (default 200)")
    parser.add_argument("--output", type=Path, help="JSON file to write; otherwise no file is written")
    return parser.parse_args()


def main() -> None:
    """Measure, print the results, and write them to the file of `--output` if it is given."""
    arguments = _arguments()
    with running_server(arguments.model, "priorities") as (address, pid):
        rounds = asyncio.run(_measure(address, pid, arguments))
    print(f"all rounds: {_summary(rounds)}")
    if arguments.output is not None:
        results = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine.describe(),
            **{name: getattr(arguments, name) for name in ("model", "requests", "prompt", "reply", "batch")},
            **{name: getattr(arguments, name) for name in ("batch_prompt", "batch_reply")},
            "rounds": rounds,
            "ratios": {kind: round(beside / alone, 3) for kind, (alone, beside) in _medians(rounds).items()},
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
