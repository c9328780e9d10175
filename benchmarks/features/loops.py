"""`python -m benchmarks.features.loops`: counts the replies of a small model that run to the sequence length.

A server with one model of the default catalog answers 50 different questions over gRPC. The requests set no max_tokens,
so only the sequence length limits a reply. A reply that reaches this length almost always repeats itself. Each seed
produces a different reply to each question. The requests use the model's sampling defaults, or those of `--sampling`.
"""

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from benchmarks.features.server import READY_SECONDS, wait_for_models
from benchmarks.peers.tailrace import one_entry_catalog
from benchmarks.processes import LOGS, Child, PeerFailed, free_port
from tailrace.v1 import inference_pb2 as pb
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub

if TYPE_CHECKING:  # the stubs of grpc.aio exist for type checkers only
    from tailrace.v1.inference_pb2_grpc import InferenceServiceAsyncStub

_ENTRY = "@cf/meta/llama-2-7b-chat-int8"
_WORDS = 8  # length of the word sequences by which repetitions are counted
QUESTIONS = """
where is new york?
Tell me a story about a lighthouse keeper.
Write a Python function that reverses a list.
Explain photosynthesis to a child.
List ten countries in Europe.
What is the capital of Norway?
How do I make pancakes?
Write a poem about the sea.
Summarise the plot of Romeo and Juliet.
What are the primary colours?
Give me five tips for a job interview.
Translate "good morning, how are you?" into French.
Why is the sky blue?
Write a short email that asks for a day off.
What is 17 times 23?
Describe how a bicycle works.
Who was Ada Lovelace?
Write a regular expression for an email address.
What should I pack for a week in the mountains?
Compare cats and dogs as pets.
Explain recursion with an example.
Write a haiku about autumn.
How does a vaccine work?
Name all planets of the solar system with one fact about each.
Write a product description for a wooden chair.
What is the difference between TCP and UDP?
Plan a three-day trip to Rome.
Write a dialogue between a robot and a gardener.
What causes earthquakes?
Give me a recipe for tomato soup.
Write a SQL query that counts the orders of each customer.
What is machine learning?
How can I sleep better?
Write a limerick about a programmer.
Explain the rules of chess.
What is inflation in economics?
Write an essay about the importance of reading.
How many legs does a spider have?
Suggest names for a coffee shop.
Describe the water cycle.
What happened in 1969?
Write a bash script that prints the ten largest files of a folder.
Is coffee good for the health?
Write the opening of a detective novel.
Explain the theory of relativity in simple words.
What are the advantages of remote work?
Give an example of a JSON document that describes a person.
How do airplanes fly?
Write a letter to a friend who has moved to another city.
Repeat the word hello five times.
""".strip().splitlines()


async def _ask(
    stub: "InferenceServiceAsyncStub", model: str, question: str, sampling: pb.Sampling, at_once: asyncio.Semaphore
) -> tuple[pb.Completed, str]:
    chat = pb.Chat(turns=[pb.ChatTurn(role="user", content=question)])
    text, completed = "", pb.Completed()
    async with at_once:
        async for event in stub.Run(pb.RunRequest(model=model, chat=chat, sampling=sampling)):
            text += event.delta.text
            if event.HasField("completed"):
                completed = event.completed
    return completed, text


def _repeated_share(text: str) -> float:
    """Return the share of word sequences that occurred earlier in the text, 0 to 1."""
    words = text.split()
    sequences = [tuple(words[first : first + _WORDS]) for first in range(len(words) - _WORDS + 1)]
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


async def _measure(address: str, arguments: argparse.Namespace) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = InferenceServiceStub(channel)
        await asyncio.wait_for(channel.channel_ready(), READY_SECONDS)
        await wait_for_models(stub)
        model = (await stub.ListModels(pb.ListModelsRequest())).models[0]
        for given in arguments.sampling or [""]:
            print(f"{model.name}, sequence length {model.sequence_length}, {given or 'no sampling parameters'}:")
            for seed in range(1, arguments.seeds + 1):
                await _measure_once(stub, model.name, sampling_of(given, seed=seed), arguments)


async def _measure_once(
    stub: "InferenceServiceAsyncStub", model: str, sampling: pb.Sampling, arguments: argparse.Namespace
) -> None:
    at_once = asyncio.Semaphore(arguments.streams)
    replies = await asyncio.gather(*(_ask(stub, model, question, sampling, at_once) for question in QUESTIONS))
    endless = [
        (question, text)
        for question, (completed, text) in zip(QUESTIONS, replies, strict=True)
        if completed.finish_reason == pb.FINISH_REASON_LENGTH
    ]
    lengths = sorted(completed.usage.completion_tokens for completed, _ in replies)
    print(
        f"seed {sampling.seed}: {len(endless)} of {len(QUESTIONS)} run to the limit; tokens: median "
        f"{statistics.median(lengths):.0f}, p90 {lengths[len(lengths) * 9 // 10]}, mean {statistics.mean(lengths):.0f}; "
        f"{statistics.mean(_repeated_share(text) for _, text in replies):.1%} of the text is repeated",
        flush=True,
    )
    for question, text in endless if arguments.show else []:
        print(f"  {question} …{text[-160:]!r}")
    if arguments.output:
        texts = {question: text for question, (_, text) in zip(QUESTIONS, replies, strict=True)}
        arguments.output.write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")


def sampling_of(given: str, *, seed: int) -> pb.Sampling:
    """Parse a text such as temperature=0.6,top_p=0.9 into sampling parameters with this seed."""
    pairs = (pair.split("=") for pair in given.split(",") if pair)
    values: dict[str, Any] = {
        name: int(value) if name in ("top_k", "max_tokens") else float(value) for name, value in pairs
    }
    return pb.Sampling(seed=seed, **values)


@contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[str]:
    """Start a server with one model of the default catalog, or with the catalog of `--catalog`. Yields its address."""
    address = f"127.0.0.1:{free_port()}"
    catalog = arguments.catalog or one_entry_catalog(arguments.model, "loops", keeps_sampling=True)
    environment = {"TAILRACE_CATALOG": str(catalog), "TAILRACE_GRPC_ADDRESS": address}
    child = Child([sys.executable, "-m", "inference_server"], LOGS / "loops.log", environment)
    try:
        yield address
    finally:
        child.stop()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features.loops", description=__doc__)
    parser.add_argument("--model", default=_ENTRY, help=f"entry of the default catalog (default {_ENTRY})")
    parser.add_argument("--catalog", type=Path, help="a catalog, whose first model answers instead")
    parser.add_argument("--seeds", type=int, default=1, help="replies to each question (default 1)")
    parser.add_argument("--streams", type=int, default=25, help="requests at a time (default 25)")
    help_text = "sampling parameters of the requests, such as temperature=0.6,top_p=0.9; several are measured in turn"
    parser.add_argument("--sampling", action="append", help=help_text)
    parser.add_argument("--show", action="store_true", help="print the end of each reply that runs to the limit")
    parser.add_argument("--output", type=Path, help="JSON file for the replies of the last seed")
    return parser.parse_args()


def main() -> None:
    """Measure and print the results."""
    arguments = _arguments()
    with _server(arguments) as address:
        try:
            asyncio.run(_measure(address, arguments))
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            raise PeerFailed(f"the server does not answer: {error}") from error


if __name__ == "__main__":
    main()
