"""`python -m benchmarks.features.speculation`: measures replies with speculative decoding relative to replies without.

Two engines of the default model run in this process, one with `speculation = "prompt-lookup"` and one with "off". The
script sends each prompt to both in turn, at temperature 0, several times. The result is the best time of each engine.
The replies must be equal. The prompts ask for code edits, extractions, summaries and chat (speculation_prompts.py).
`--streams` sets the number of prompts of a kind that are sent together.

The script prints two ratios, each of a time without speculative decoding to the same time with it. One is the time from
a reply's first token to its last: the longest of the replies to prompts that are sent together. The other is the
process's CPU time from the latest first token to the end of these replies. The CPU time is more reliable on a machine
that other processes use too, but only with one thread (`OMP_NUM_THREADS=1`), because waiting threads use the CPU too.
"""

import argparse
import asyncio
import dataclasses
import os
import time
from dataclasses import dataclass, field
from itertools import cycle, islice

from benchmarks import machine
from benchmarks.features.speculation_prompts import KINDS
from inference_server.generation import Completed, Delta, GenerationRequest, SamplingParams
from inference_server.serving.catalog import CatalogEntry, read_catalog
from inference_server.serving.hosted_model import HostedModel
from inference_server.serving.startup import load_all
from inference_server.settings.models import DEFAULT_CATALOG
from inference_server.settings.server import Settings
from inference_server.text.chat.turns import Turn

# Indices of the default model's catalog entries, by precision.
_ENTRIES = {"int8": 0, "16-bit": 1, "int4": 2}
_MODES = ("off", "on")


@dataclass
class _Times:
    """Best times of one batch of replies, in seconds, with the texts and the number of tokens of its last run."""

    decode: float = float("inf")
    cpu: float = float("inf")
    texts: list[str] = field(default_factory=list)
    num_tokens: int = 0


@dataclass
class _Sums:
    """Sums of times over the batches of one kind of prompts, by mode, and the CPU time ratio of each batch."""

    decode: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_MODES, 0.0))
    cpu: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_MODES, 0.0))
    ratios: list[float] = field(default_factory=list)
    num_tokens: int = 0


async def _reply(model: HostedModel, prompt_ids: list[int], max_tokens: int) -> tuple[str, Completed, float]:
    """Return the text and the last event of one greedy reply, and the process's CPU time at its first token."""
    sampling = SamplingParams(seed=1, temperature=0.0)
    request = GenerationRequest(request_id="benchmark", prompt_ids=prompt_ids, sampling=sampling, max_tokens=max_tokens)
    parts: list[str] = []
    first = 0.0
    async with model.submit(request) as reply:
        async for event in reply:
            if isinstance(event, Delta):
                first = first or time.process_time()
                parts.append(event.text)
            elif isinstance(event, Completed):
                return "".join(parts), event, first
    raise RuntimeError("the reply has no end")


async def _run(model: HostedModel, prompts: list[list[int]], max_tokens: int, times: _Times) -> None:
    """Send the prompts together, and record the times if they are the best so far."""
    replies = await asyncio.gather(*(_reply(model, prompt, max_tokens) for prompt in prompts))
    times.cpu = min(times.cpu, time.process_time() - max(first for _, _, first in replies))
    times.decode = min(times.decode, max(completed.timings.decode for _, completed, _ in replies))
    times.texts = [text for text, _, _ in replies]
    times.num_tokens = sum(completed.usage.completion_tokens for _, completed, _ in replies)


async def _measure(models: dict[str, HostedModel], kind: str, arguments: argparse.Namespace) -> str:
    """Return a row of the table for one kind of prompts."""
    encoder = models["on"].prompts
    prompts = [encoder.encode_chat([Turn("user", text)]) for text in KINDS[kind]()[: arguments.prompts]]
    size = arguments.streams
    batches = [[prompt] for prompt in prompts] if size == 1 else [list(islice(cycle(prompts), size))]
    before = models["on"].engine.totals
    sums = _Sums()
    for batch in batches:
        best = {mode: _Times() for mode in _MODES}
        for number in range(arguments.rounds):
            for mode in _MODES if number % 2 else reversed(_MODES):
                await _run(models[mode], batch, arguments.max_tokens, best[mode])
        if best["on"].texts != best["off"].texts:
            raise RuntimeError(f"a reply of the kind {kind} differs with speculative decoding")
        for mode, times in best.items():
            sums.decode[mode] += times.decode
            sums.cpu[mode] += times.cpu
        sums.ratios.append(best["off"].cpu / best["on"].cpu)
        sums.num_tokens += best["on"].num_tokens
    after = models["on"].engine.totals
    drafted = after.drafted_tokens - before.drafted_tokens
    accepted = after.accepted_tokens - before.accepted_tokens
    share = f"{accepted / drafted:.0%}" if drafted else "-"
    added = accepted / arguments.rounds / max(1, sums.num_tokens)
    ratios = " ".join(f"{ratio:.2f}" for ratio in sorted(sums.ratios))
    decode, cpu = (each["off"] / each["on"] for each in (sums.decode, sums.cpu))
    return f"| {kind} | {sums.num_tokens} | {decode:.2f} | {cpu:.2f} | {ratios} | {share} | {added:.0%} |"


def _entries(precision: str) -> list[CatalogEntry]:
    entry = read_catalog(DEFAULT_CATALOG)[_ENTRIES[precision]]
    return [
        dataclasses.replace(entry, name="on", speculation="prompt-lookup"),
        dataclasses.replace(entry, name="off", speculation="off"),
    ]


async def _main(arguments: argparse.Namespace) -> None:
    print(f"{machine.describe()['cpu']}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}")
    for precision in arguments.precisions.split(","):
        settings = Settings(device="cpu", prefix_cache="off", max_running_seqs=32)
        hosted = await load_all(_entries(precision), settings, lambda: None)
        models = {name: model for name, model in hosted.items() if isinstance(model, HostedModel)}
        print(f"\n{precision}, {arguments.streams} streams, replies of at most {arguments.max_tokens} tokens\n")
        print("| prompts | tokens | decode time | CPU time | CPU time of each batch | accepted | tokens from drafts |")
        print("|---|---:|---:|---:|---|---:|---:|", flush=True)
        for kind in arguments.kinds.split(","):
            print(await _measure(models, kind, arguments), flush=True)
        for model in models.values():
            await model.engine.stop()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures speculative decoding by prompt lookup.")
    parser.add_argument("--precisions", default="int4,16-bit", help=", ".join(_ENTRIES))
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of prompts, separated by commas")
    parser.add_argument("--prompts", type=int, help="prompts of each kind; unset: all")
    parser.add_argument("--streams", type=int, default=1, help="prompts that are sent together")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of each prompt")
    parser.add_argument("--max-tokens", type=int, default=200, help="tokens of the longest reply")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(_main(_arguments()))
