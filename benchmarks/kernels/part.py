"""Measures the products with one instruction set and one number of threads. `benchmarks.kernels` starts this process.

Reads a job from stdin and writes its results to stdout, as JSON. torch, oneDNN and OpenMP read their limits from the
environment when they are loaded, so each limit needs its own process.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.bandwidth import Reader
from benchmarks.kernels.shapes import MODELS, Model
from benchmarks.kernels.subjects import SUBJECTS, Product, TailraceProduct, random_weight
from benchmarks.kernels.timing import shortest_seconds

_READER_MIB = 1024
Row = dict[str, Any]


def main() -> None:
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    bandwidths = [_bandwidth(job["threads"])]
    rows = []
    large_pages = 0.0
    for row in _rows(job):
        rows.append(row)
        large_pages = max(large_pages, _large_pages_mib())
    bandwidths.append(_bandwidth(job["threads"]))
    result = {"bandwidth": max(bandwidths), "large_pages_mib": large_pages, "rows": rows}
    print(json.dumps(result))


def _bandwidth(threads: int) -> float:
    """Return the read bandwidth in bytes per second: of CPU time for one thread, else of wall time, as for products."""
    reader = Reader(_READER_MIB)
    return reader.bytes_per_cpu_s() if threads == 1 else reader.bytes_per_s(threads)


def _large_pages_mib() -> float:
    """Return the MiB of this process's memory that are in large pages; 0 where the system does not report it."""
    try:
        text = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return int(text.partition("AnonHugePages:")[2].split()[0]) / 1024


def _rows(job: dict[str, Any]) -> Iterator[Row]:
    for model in (MODELS[name] for name in job["models"]):
        for weight_format in job["formats"]:
            for subject in job["subjects"]:
                print(f"  {model.name} {weight_format} {subject}", file=sys.stderr, flush=True)
                try:
                    products = _products(model, weight_format, subject)
                    yield from (
                        _measured(model, products, rows, job) | _names(job, model, weight_format, subject)
                        for rows in job["rows"]
                    )
                except RuntimeError as error:  # torch lacks the operation on this instruction set
                    reason = str(error).splitlines()[0]
                    yield {"failure": reason} | _names(job, model, weight_format, subject)
                products = []


def _names(job: dict[str, Any], model: Model, weight_format: str, subject: str) -> Row:
    names = {"model": model.name, "format": weight_format, "subject": subject}
    return names | {"features": job["features"], "threads": job["threads"]}


def _products(model: Model, weight_format: Any, subject: str) -> list[Product]:
    """Return the products of a pass in order. Products of one kind of layer have equal weights in separate memory."""
    first = {
        layer.name: SUBJECTS[subject](random_weight(layer, weight_format), weight_format) for layer in model.layers
    }
    products, used = [], set()
    for layer in model.in_order():
        products.append(first[layer.name].copy() if layer.name in used else first[layer.name])
        used.add(layer.name)
    return products


def _measured(model: Model, products: list[Product], rows: int, job: dict[str, Any]) -> Row:
    clock = time.thread_time if job["threads"] == 1 else time.perf_counter
    calls = [product.call(rows) for product in products]
    seconds = shortest_seconds(calls, clock, seconds=job["seconds"], passes=job["passes"])
    num_bytes = sum(product.num_bytes for product in products)
    layers: dict[str, list[float]] = {}
    for layer, product, spent in zip(model.in_order(), products, seconds, strict=True):
        entry = layers.setdefault(layer.name, [0.0, 0.0])
        entry[0] += spent
        entry[1] += product.num_bytes
    first = products[0]
    return {
        "rows": rows,
        "ms": sum(seconds) * 1e3,
        "gb_per_s": num_bytes / sum(seconds) / 1e9,
        "mib": num_bytes / 2**20,
        "backend": first.backend.name if isinstance(first, TailraceProduct) else "",
        "layers": {name: {"ms": s * 1e3, "gb_per_s": b / s / 1e9} for name, (s, b) in layers.items()},
    }


if __name__ == "__main__":
    main()
