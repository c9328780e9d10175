"""Runs loads on an engine without a server: reads each load from stdin and writes its result to stdout, as JSON."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.load.load import Load, Outcome, Record

Answer = Callable[[Load], list[Record]]


def serve(load_engine: Callable[[dict[str, Any]], Answer]) -> None:
    """Read the engine's options, then loads, from stdin. Writes an outcome to stdout for each load.

    `load_engine` receives the options, and returns the function that runs a load.
    """
    # Libraries print to stdout. Their output is redirected to stderr, so that stdout contains only the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = load_engine(json.loads(sys.stdin.readline()))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        load = Load.from_json(json.loads(line))
        try:
            outcome = Outcome(records=answer(load), client_cpu_s=0.0)
        except Exception as error:
            start = time.perf_counter()
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            outcome = Outcome(records=[Record(start=start, error=reason) for _ in load.requests], client_cpu_s=0.0)
        print(json.dumps(outcome.to_json()), file=answers, flush=True)
