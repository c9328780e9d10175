"""Measures the speed of decoding with LoRA adapters, as a share of the same engine's speed without them.

`python -m benchmarks.adapters` serves the default model with 16 random adapters of rank 8 in one engine. It prints the tokens/s of
1 and 8 streams in three kinds: without an adapter, one adapter for all streams, and an adapter of its own for each stream.
The adapters adapt all seven linear layers of each layer of the model ("all"), or only q and v ("qv"), PEFT's default for
Llama. The kinds alternate in short rounds, so that other processes slow all of them. A ratio is the median over the rounds.

`--steps` measures the decode steps of the model alone, on one thread and in its CPU time. Other processes affect this less.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe
from inference_server.generation import GenerationRequest, SamplingParams
from inference_server.serving.catalog import CatalogEntry, read_catalog
from inference_server.serving.hosted_model import HostedModel
from inference_server.serving.startup import load_all
from inference_server.settings import Settings
from inference_server.weights.download import local_folder
from tests.support.adapters import ALL, linear_shapes, write_adapter

_CATALOG = Path(__file__).parent.parent / "inference_server" / "catalogs" / "default.toml"
_NUM_ADAPTERS = 16
_TARGETS = {"all": ALL, "qv": ("q_proj", "v_proj")}
_SAMPLING = SamplingParams(seed=1, temperature=0.0, ignore_eos=True)


def _entries(folder: Path, targets: str, settings: Settings) -> list[CatalogEntry]:
    """Return the default catalog's entries that generate text, with adapters."""
    from dataclasses import replace

    from transformers import AutoConfig

    entries = [entry for entry in read_catalog(_CATALOG) if entry.task == "generation"]
    shapes = linear_shapes(AutoConfig.from_pretrained(local_folder(entries[0].weights, settings.cache_dir)))
    adapters = {
        f"adapter-{seed}": write_adapter(
            folder / f"{targets}-{seed}", shapes, targets=_TARGETS[targets], seed=seed, size=0.01
        )
        for seed in range(_NUM_ADAPTERS)
    }
    return [replace(entry, adapters=adapters) for entry in entries]


async def _tokens_per_s(model: HostedModel, adapters: list[int], num_tokens: int) -> float:
    """Return the tokens/s of all streams together, from the first token of the last stream to the end of the first one."""

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
            kinds = {
                "no adapter": [0] * streams,
                "one adapter": [1] * streams,
                "own adapters": [1 + index for index in range(streams)],
            }
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", choices=list(_TARGETS), nargs="*", default=list(_TARGETS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    print(describe())
    for targets in arguments.targets:
        asyncio.run(_measure(targets, arguments.rounds, arguments.tokens))


if __name__ == "__main__":
    main()
