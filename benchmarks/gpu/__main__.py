"""Runs the loads on every subject within a time limit and writes results as JSON. See --help."""

import argparse
import gc
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from benchmarks.gpu import models
from benchmarks.gpu.subjects import ContinuousBatching, Generate, Tailrace, Timing

Results = dict[str, Any]


def main() -> None:
    arguments = _arguments()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # bitsandbytes warns about a cast in every step
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    deadline = time.monotonic() + arguments.seconds
    results: Results = {"machine": _machine(device), "date": date.today().isoformat(), "figures": {}}
    results["copy_gb_per_s"] = round(_copy_bandwidth(device) / 1e9, 1)
    print(f"copy: {results['copy_gb_per_s']} GB/s", flush=True)
    for name, int8, attention, make in (
        ("tailrace 16-bit", False, "tailrace", Tailrace),
        ("generate 16-bit", False, "sdpa", Generate),
        ("continuous batching 16-bit", False, "sdpa", ContinuousBatching),
        ("tailrace int8", True, "tailrace", Tailrace),
        ("generate int8 (stock bitsandbytes)", True, "sdpa", Generate),
    ):
        results["figures"][name] = _measure(name, int8, attention, make, device, arguments, deadline, results)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written: {arguments.out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--path", help="folder or hub id of real weights; without it they are random")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script itself (CPU too)")
    parser.add_argument("--seconds", type=float, default=440.0, help="start no load after this time")
    parser.add_argument("--tokens", type=int, default=128, help="length of every reply")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"), help="file for the results")
    return parser.parse_args()


def _measure(
    name: str,
    int8: bool,
    attention: str,
    make: Callable[[Any], Any],
    device: torch.device,
    arguments: argparse.Namespace,
    deadline: float,
    results: Results,
) -> Results:
    """Return one subject's figures. A failure is recorded with its reason, and the run continues."""
    figures: Results = {}
    try:
        model = models.make(device, path=arguments.path, tiny=arguments.tiny, int8=int8, attention=attention)
        bound = results["copy_gb_per_s"] * 1e9 / models.weight_bytes(model)
        figures["bound_tokens_per_s_at_1"] = round(bound, 1)
        with _subject(make, model) as subject:
            for load, prompts in _loads(model.config.vocab_size).items():
                if time.monotonic() > deadline:
                    figures[load] = {"left out": "the time was over"}
                    continue
                subject.run([prompt[:32] for prompt in prompts], 4)  # kernels, graphs, workspaces
                figures[load] = _figures([subject.run(prompts, arguments.tokens) for _ in range(2)])
                print(f"{name}, {load}: {figures[load]}", flush=True)
        del model
    except Exception as error:
        figures["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(f"{name}: {figures['failed']}", flush=True)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return figures


@contextmanager
def _subject(make: Callable[[Any], Any], model: Any) -> Iterator[Any]:
    subject = make(model)
    try:
        yield subject
    finally:
        subject.close()


def _loads(vocab_size: int) -> dict[str, list[list[int]]]:
    def prompt(number: int, length: int) -> list[int]:
        return [(number * 7919 + place * 31) % (vocab_size - 10) + 5 for place in range(length)]

    loads = {f"{count} streams": [prompt(number, 30) for number in range(count)] for count in (1, 8, 64)}
    return loads | {"1 long prompt": [prompt(99, 1500)]}


def _figures(rounds: list[list[Timing]]) -> Results:
    """Return tokens/s of the whole load and of decoding, and the time to the first token in milliseconds."""
    whole = [sum(one.count for one in timings) / max(one.last for one in timings) for timings in rounds]
    decode = [
        sum(one.count - 1 for one in timings) / max(one.last - one.first for one in timings) for timings in rounds
    ]
    first = [median(one.first for one in timings) * 1e3 for timings in rounds]
    return {
        "tokens_per_s": round(median(whole), 1),
        "decode_tokens_per_s": round(median(decode), 1),
        "ttft_ms": round(median(first), 1),
    }


def _copy_bandwidth(device: torch.device) -> float:
    """Return the bytes per second that a copy reads and writes."""
    size = 2**31 if device.type == "cuda" else 2**28
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = max(best, 2 * size / (time.perf_counter() - start))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _machine(device: torch.device) -> Results:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}


if __name__ == "__main__":
    main()
