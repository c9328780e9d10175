"""Runs the checks of one part, in order, and writes the state after each figure. supervisor.py starts this process.

The name of a part is the command's first argument. Checks that the state file already contains are not repeated.
"""

import argparse
import gc
import importlib
import logging
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import models
from benchmarks.gpu import state as states
from benchmarks.gpu.checks import Check, LeftOut, Setup

MODULES = {
    "probe": "probe",
    "correctness": "correctness",
    "micro": "micro",
    "benchmark": "benchmark",
    "profile": "replay_profile",
}
# The process's exit code after a device error. Every later CUDA call of the process would raise the error again.
DEVICE_LOST = 3
_PRINTED = 120  # longest printed figure, in characters
_LEAST_SECONDS = 1.0  # no check begins with less time left


class Recorder:
    """Runs checks, and writes the state file after each change."""

    def __init__(self, path: Path, setup: Setup, seconds: float) -> None:
        """Read the state file `path`, if it exists. `seconds`: time limit of all checks together."""
        self._path, self._setup = path, setup
        self._deadline = time.monotonic() + seconds
        self._state = states.read(path)

    def run(self, part: str, checks: list[Check]) -> None:
        """Run the checks that have no record yet. After a permanent device error, ends the process with DEVICE_LOST."""
        for check in checks:
            if check.name not in self._state["checks"]:
                self._run_check(part, check)
        self._state["complete"] = True
        states.write(self._path, self._state)

    def _run_check(self, part: str, check: Check) -> None:
        left = self._deadline - time.monotonic()
        record: states.Results = {"status": "running", "since": time.time(), "limit": min(check.seconds, left)}
        record["figures"] = {}
        self._state["checks"][check.name] = record
        if left < _LEAST_SECONDS:
            record |= {"status": "left out", "reason": "the time was over"}
        states.write(self._path, self._state)
        if record["status"] == "running":
            self._attempt(part, check, record)
        del record["since"], record["limit"]
        states.write(self._path, self._state)
        reason = f": {record['reason']}" if "reason" in record else ""
        print(f"{part}, {check.name}: {record['status']}{reason} ({record.get('seconds', 0)} s)", flush=True)
        if record["status"] == "failed" and self._is_device_lost():
            sys.stderr.flush()
            os._exit(DEVICE_LOST)  # a regular exit would call CUDA again

    def _attempt(self, part: str, check: Check, record: states.Results) -> None:
        def note(name: str, figure: Any) -> None:
            record["figures"][name] = figure
            states.write(self._path, self._state)
            print(f"{part}, {check.name}: {name} {str(figure)[:_PRINTED]}", flush=True)

        start = time.monotonic()
        try:
            check.run(self._setup, note)
            self._setup.wait()
            record["status"] = "ok"
        except LeftOut as reason:
            record |= {"status": "left out", "reason": str(reason)}
        except Exception as error:  # the other checks run after any failure
            traceback.print_exc()
            message = str(error).strip().splitlines()
            record |= {"status": "failed", "reason": f"{type(error).__name__}: {message[0] if message else ''}"}
            traceback.clear_frames(error.__traceback__)  # frames refer to tensors, whose memory would stay in use
        record["seconds"] = round(time.monotonic() - start, 1)
        self._free()

    def _free(self) -> None:
        gc.collect()
        if self._setup.is_cuda and not self._is_device_lost():
            torch.cuda.empty_cache()

    def _is_device_lost(self) -> bool:
        try:
            self._setup.wait()
        except RuntimeError:
            return True
        return False


def main() -> None:
    """Run the checks of the part that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.part", description=__doc__)
    parser.add_argument("part", choices=MODULES)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--shapes", choices=models.SHAPES)
    parser.add_argument("--path")
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # bitsandbytes warns about a cast in every step
    warnings.filterwarnings("ignore", category=UserWarning, module="bitsandbytes")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = arguments.shapes or models.default_shapes(device)
    if shapes == "tiny" and device.type == "cpu" and arguments.part == "correctness":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton is imported later and then reads this variable
    setup = Setup(device, shapes, arguments.path, arguments.tokens)
    checks: list[Check] = importlib.import_module(f"benchmarks.gpu.parts.{MODULES[arguments.part]}").CHECKS
    Recorder(arguments.state, setup, arguments.seconds).run(arguments.part, checks)


if __name__ == "__main__":
    main()
