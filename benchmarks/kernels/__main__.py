"""`python -m benchmarks.kernels`: times the products of linear layers for each instruction set of this CPU.

Writes results/CLASS/DATE-kernels.json, and prints the tables.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.instruction_sets import InstructionSet, available, cpu_flags, named
from benchmarks.kernels.shapes import MODELS
from benchmarks.processes import ROOT
from benchmarks.report import kernel_tables

_FORMATS = ["int4", "int8", "bf16"]
_SUBJECTS = ["tailrace", "torch"]
_ROWS = [1, 8, 32, 256]
# With this variable, glibc requests large pages for torch's memory, as Tailrace does for its weights. So all subjects
# have them.
_LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # SystemExit makes subprocess.run kill its process
    flags = cpu_flags()
    sets = [named(name, flags) for name in arguments.features] if arguments.features else available(flags)
    started = datetime.now(UTC)
    parts = []
    for each in sets:
        for threads in arguments.threads:
            print(f"{each.name}, {threads} thread{'s' if threads > 1 else ''}", file=sys.stderr, flush=True)
            parts.append(_part(each, threads, arguments))
    document = _document(parts, arguments, started)
    path = arguments.output or machine.results_folder() / f"{started:%Y-%m-%d}-kernels.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(kernel_tables.tables(document))
    print(f"results: {path}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--features", type=_names, default=[], help="instruction sets (default: all of this CPU)")
    parser.add_argument("--models", type=_names, default=list(MODELS), help=f"of {','.join(MODELS)}")
    parser.add_argument("--formats", type=_names, default=_FORMATS, help=f"of {','.join(_FORMATS)}")
    parser.add_argument("--subjects", type=_names, default=_SUBJECTS, help=f"of {','.join(_SUBJECTS)}")
    parser.add_argument("--rows", type=_numbers, default=_ROWS, help="numbers of rows (default 1,8,32,256)")
    parser.add_argument("--threads", type=_numbers, default=sorted({1, cores}), help=f"(default 1 and {cores})")
    parser.add_argument("--seconds", type=float, default=1.0, help="least duration of each measurement (default 1)")
    parser.add_argument("--quick", action="store_true", help="two passes of each measurement, 1 and 32 rows")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.seconds = [row for row in arguments.rows if row in (1, 32)], 0.0
    return arguments


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _part(limit: InstructionSet, threads: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one measuring process, and return its results with its instruction set and number of threads."""
    names = ("models", "formats", "subjects", "rows", "seconds")
    job = {name: getattr(arguments, name) for name in names}
    job |= {"threads": threads, "features": limit.name, "passes": 1 if arguments.quick else 3}
    environment = {**os.environ, **limit.environment(), **_LARGE_PAGES, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.kernels.part"]
    done = subprocess.run(
        command, input=json.dumps(job), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    part: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return part | {"threads": threads, "features": limit.name}


def _document(parts: list[dict[str, Any]], arguments: argparse.Namespace, started: datetime) -> dict[str, Any]:
    bandwidth: dict[str, float] = {}
    for part in parts:
        threads = str(part["threads"])
        bandwidth[threads] = max(bandwidth.get(threads, 0.0), part["bandwidth"])
    return {
        "started": started.isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "parts": [{name: value for name, value in part.items() if name != "rows"} for part in parts],
        "bandwidth_gb_per_s": {threads: value / 1e9 for threads, value in bandwidth.items()},
        "models": {name: MODELS[name].title for name in arguments.models},
        "rows": arguments.rows,
        "results": [row for part in parts for row in part["rows"]],
    }


if __name__ == "__main__":
    sys.exit(main())
