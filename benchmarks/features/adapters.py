"""Measures the speed of decoding with LoRA adapters, relative to the same engine's speed without them.

`python -m benchmarks.features.adapters` serves the default model with 16 random adapters of rank 8, with one engine for each
precision. It prints the tokens/s of 1 and 8 streams for three kinds of load: without an adapter, with one adapter for
all streams, and with a different adapter for each stream. The adapters adapt all seven linear layers of each decoder
layer ("all"), or only q and v ("qv"), as PEFT does for Llama by default. The kinds alternate in short rounds, so that
other processes slow all of them equally. A ratio is the median over the rounds.

`--steps` measures only the decode steps of the model, in the CPU time of one thread. Other processes affect this
measurement less. Its times are lower quartiles over the steps.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoConfig

from benchmarks.machine import describe
from inference_server.generation import GenerationRequest, SamplingParams
from inference_server.lora.adapter import read_adapter
from inference_server.model.runner import ModelRunner, NextToken
from inference_server.precision import cache_dtype, resolve_precision
from inference_server.serving.catalog import CatalogEntry, read_catalog
from inference_server.serving.hosted_model import HostedModel
from inference_server.serving.startup import load_all
from inference_server.settings.models import DEFAULT_CATALOG
from inference_server.settings.server import Settings
from inference_server.weights.download import local_folder
from inference_server.weights.prepare import prepare
from tests.support.models.adapters import ALL, linear_shapes, write_adapter

_NUM_ADAPTERS = 16
_TARGETS = {"all": ALL, "qv": ("q_proj", "v_proj")}
_SAMPLING = SamplingParams(seed=1, temperature=0.0, ignore_eos=True)


def _entries(folder: Path, targets: str, settings: Settings) -> list[CatalogEntry]:
    """Write the adapters to `folder`, and return the default catalog's entries that generate text, with them."""
    entries = [entry for entry in read_catalog(DEFAULT_CATALOG) if entry.task == "generation"]
    shapes = linear_shapes(AutoConfig.from_pretrained(local_folder(entries[0].weights, settings.cache_dir)))
    adapters = {
        f"adapter-{seed}": write_adapter(
            folder / f"{targets}-{seed}", shapes, targets=_TARGETS[targets], seed=seed, size=0.01
        )
        for seed in range(_NUM_ADAPTERS)
    }
    # Draft tokens would hide the adapters' cost, because adapted replies repeat themselves more often.
    return [replace(entry, adapters=adapters, speculation="off") for entry in entries]


async def _tokens_per_s(model: HostedModel, adapters: list[int], num_tokens: int) -> float:
    """Return the tokens/s of all streams together.

    The measured time begins when every stream has received its third event, and ends with the first complete reply.
    All tokens of the replies count, including those before and after this time.
    """

    async def one(index: int, adapter: int) -> tuple[float, float]:
        prompt = model.prompts.encode_text(f"Stream {index} tells a story about the number {adapter}.")
        request = GenerationRequest(
            request_id=str(index), prompt_ids=prompt, sampling=_SAMPLING, max_tokens=num_tokens, adapter=adapter
        )
        times = []
        async with model.submit(request) as reply:
            async for _ in reply:
                times.append(time.perf_counter())
        return times[2], times[-1]

    found = await asyncio.gather(*(one(index, adapter) for index, adapter in enumerate(adapters)))
    seconds = min(last for _, last in found) - max(first for first, _ in found)
    return len(adapters) * num_tokens / seconds


async def _measure(targets: str, num_rounds: int, num_tokens: int) -> None:
    settings = Settings(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        models = await load_all(_entries(Path(folder), targets, settings), settings, lambda: None)
    for model in models.values():
        assert isinstance(model, HostedModel)
        for streams in (1, 8):
            kinds = _kinds(streams)
            rates: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(num_rounds):
                for kind, adapters in kinds.items():
                    rates[kind].append(await _tokens_per_s(model, adapters, num_tokens))
            plain = rates["no adapter"]
            for kind, found in rates.items():
                ratio = statistics.median(rate / base for rate, base in zip(found, plain, strict=True))
                print(
                    f"{model.precision:18} {targets:4} {streams} streams  {kind:13}"
                    f"{statistics.median(found):8.1f} tokens/s  {ratio:.3f} of no adapter",
                    flush=True,
                )
        await model.engine.stop()


def _measure_steps(targets: str, num_steps: int) -> None:
    """Measure decode steps without the engine, on one thread, in CPU time."""
    settings = Settings(device="cpu")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        entries = _entries(Path(folder), targets, settings)
        adapters = [read_adapter(path) for path in entries[0].adapters.values()]
    for entry in entries:
        precision = resolve_precision(entry.precision, torch.device("cpu"))
        model = prepare(entry.weights, precision, torch.device("cpu"), settings).model
        runner = ModelRunner(model, num_blocks=400, cache_dtype=cache_dtype(precision), adapters=adapters)
        runner.probe()
        for streams in (1, 8):
            kinds = _kinds(streams)
            seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
            for step in range(num_steps):
                for kind, used in kinds.items():
                    tokens = [
                        NextToken(range(1 + 9 * i, 10 + 9 * i), 100 + step, 7 + i, used[i]) for i in range(streams)
                    ]
                    start = time.thread_time()
                    runner.decode(tokens)
                    seconds[kind].append(time.thread_time() - start)
            times = {kind: statistics.quantiles(found, n=4)[0] for kind, found in seconds.items()}
            for kind, found in times.items():
                ratio = times["no adapter"] / found
                print(
                    f"{precision:18} {targets:4} {streams} streams  {kind:13}{1e3 * found:8.2f} ms  {ratio:.3f} of no adapter",
                    flush=True,
                )


def _kinds(streams: int) -> dict[str, list[int]]:
    """Return the adapter number of each stream, by kind of load. Adapters are numbered from 1; 0 means no adapter."""
    own = [1 + index for index in range(streams)]
    return {"no adapter": [0] * streams, "one adapter": [1] * streams, "own adapters": own}


def main() -> None:
    """Measure the kinds of load, or the decode steps, and print a line for each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", choices=list(_TARGETS), nargs="*", default=list(_TARGETS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", action="store_true", help="measure decode steps without the engine")
    arguments = parser.parse_args()
    print(describe())
    for targets in arguments.targets:
        if arguments.steps:
            _measure_steps(targets, arguments.tokens)
        else:
            asyncio.run(_measure(targets, arguments.rounds, arguments.tokens))


if __name__ == "__main__":
    main()
