"""Checks and measures Tailrace on a GPU, and writes gpu.json and gpu.log. docs/gpu.md explains the parts and figures."""

import argparse
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from benchmarks.gpu import outcome
from benchmarks.gpu import state as states
from benchmarks.gpu.supervisor import PARTS, Supervisor

_SECONDS = 480.0


def main() -> int:
    """Run the parts. Returns 1 if a check failed or a part is not complete, else 0."""
    signal.signal(signal.SIGTERM, _stop)
    arguments = _arguments()
    shapes = "tiny" if arguments.tiny else arguments.shapes
    options = ["--tokens", str(8 if arguments.tiny else arguments.tokens)]
    options += [] if shapes is None else ["--shapes", shapes]
    options += [] if arguments.path is None else ["--path", arguments.path]
    supervisor = Supervisor(arguments.out, options)
    (arguments.out / "gpu.log").unlink(missing_ok=True)
    supervisor.results |= {"started": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": arguments.seconds}
    parts = [part for part in PARTS if part.name in arguments.parts]
    results = supervisor.run(parts, arguments.seconds)
    results["goals"] = [goal._asdict() for goal in outcome.goals(results)]
    states.write(arguments.out / "gpu.json", results)
    print(f"\n{outcome.summary(results)}\nwritten: {arguments.out / 'gpu.json'}", flush=True)
    return 1 if outcome.failures(results) else 0


def _arguments() -> argparse.Namespace:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", "build/gpu")), help="folder for the results"
    )
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="limit for all parts together")
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help="only these parts")
    parser.add_argument("--shapes", choices=("llama-2-7b", "llama-3.2-1b", "tiny"), help="default: what fits the GPU")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the check itself, on a CPU too")
    parser.add_argument("--path", help="folder or hub id of real weights; without it they are random")
    parser.add_argument("--tokens", type=int, default=128, help="length of every measured reply")
    return parser.parse_args()


def _stop(number: int, frame: object) -> NoReturn:
    """Exit by raising SystemExit, so that the supervisor also ends the part's process."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
