"""Runs the parts one after the other, each in a separate process, within a time limit. Does not import torch.

CUDA code can hang, end its process, or leave a device error that every later call raises. If a check takes too long,
its process is killed. After that, or if the process ended early, a new process runs the remaining checks of the part.
The results of earlier checks are on disk.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu import state as states
from benchmarks.gpu.state import Results


class Part(NamedTuple):
    """A part of the GPU check. `share`: its share of the remaining time, relative to the shares of the later parts."""

    name: str
    share: float


PARTS = (
    Part("probe", 0.12),
    Part("correctness", 0.32),
    Part("micro", 0.14),
    Part("benchmark", 0.34),
    Part("profile", 0.08),
)

_POLL_SECONDS = 0.2
_LEAST_SECONDS = 3.0  # no process starts with less time left
_LOG_LINES = 6  # last lines of a failed process's output that are recorded


def limits(parts: Items[Part], index: int, seconds_left: float) -> float:
    """Return the time limit of part `index`, in seconds. Later parts share the time that earlier parts did not use."""
    return seconds_left * parts[index].share / sum(part.share for part in parts[index:])


@dataclass
class Supervisor:
    """Runs parts and stores their results in one JSON file.

    Attributes:
        folder: Folder for gpu.json (all results), gpu.log (the processes' stderr), and the state file of the running
            part.
        options: Command line options of benchmarks.gpu.part, the same for all parts.
        command: The command that runs a part, to which its arguments are appended; tests replace it.
    """

    folder: Path
    options: list[str]
    command: list[str] = field(default_factory=lambda: [sys.executable, "-u", "-m", "benchmarks.gpu.part"])
    results: Results = field(default_factory=lambda: {"parts": {}})

    def run(self, parts: Items[Part], seconds: float) -> Results:
        """Run all parts in at most `seconds`. Returns the results. gpu.json is updated after each check."""
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + seconds
        for index, part in enumerate(parts):
            limit = limits(parts, index, deadline - time.monotonic())
            print(f"== {part.name}: at most {limit:.0f} s", flush=True)
            self._run_part(part.name, limit)
        self._save()
        return self.results

    def _run_part(self, name: str, limit: float) -> None:
        path = self.folder / f"{name}.part.json"
        path.unlink(missing_ok=True)
        start = time.monotonic()
        num_done, num_starts, failure = -1, 0, None
        while True:
            state = states.read(path)
            left = limit - (time.monotonic() - start)
            if state["complete"] or len(state["checks"]) == num_done or left < _LEAST_SECONDS:
                break
            num_done, num_starts = len(state["checks"]), num_starts + 1
            failure = self._run_process(name, path, left)
        state |= {"seconds": round(time.monotonic() - start, 1), "processes": num_starts}
        if not state["complete"]:
            state["failed"] = failure or "the time was over"
            print(f"{name}: not complete: {state['failed']}", flush=True)
        self.results["parts"][name] = state
        self._save()
        path.unlink(missing_ok=True)

    def _run_process(self, name: str, path: Path, limit: float) -> str | None:
        """Run the checks of a part that are not done yet. Returns the reason if the process failed."""
        with (self.folder / "gpu.log").open("ab") as log:
            begin = log.tell()
            process = subprocess.Popen(
                [*self.command, name, "--state", str(path), "--seconds", f"{limit:.1f}", *self.options],
                stderr=log,
                start_new_session=True,
            )
            try:
                failure = self._watch(name, process, path, time.monotonic() + limit)
            finally:
                _kill(process)
        if failure is None:
            return None
        output = (self.folder / "gpu.log").read_bytes()[begin:].decode(errors="replace")
        state = states.read(path)
        if found := states.running(state):
            check, record = found
            lines = [line for line in output.splitlines() if line.strip()][-_LOG_LINES:]
            del record["since"], record["limit"]
            record |= {"status": "failed", "reason": failure, "output": lines}
            states.write(path, state)
            print(f"{name}, {check}: {failure}", flush=True)
        return failure

    def _watch(self, name: str, process: subprocess.Popen[bytes], path: Path, deadline: float) -> str | None:
        """Wait for the end of a process. Returns the reason if it failed or has to be killed."""
        seen = None
        while (code := process.poll()) is None:
            state = states.read(path)
            if state != seen:
                seen = self.results["parts"][name] = state
                self._save()
            found = states.running(state)
            if found is not None and time.time() > found[1]["since"] + found[1]["limit"]:
                return f"it took longer than {found[1]['limit']:.0f} s"
            if time.monotonic() > deadline:
                return "the time of this part was over"
            time.sleep(_POLL_SECONDS)
        if code < 0:
            return f"its process ended by signal {signal.Signals(-code).name}"
        return f"its process ended with code {code}" if code else None

    def _save(self) -> None:
        states.write(self.folder / "gpu.json", self.results)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and the processes that it started (Triton starts compilers)."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a process blocked in the GPU's driver ends later
        process.wait(10)
