"""Engines that have no server of their own: each in a process that answers loads, a line of JSON each way."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.load import Load, Outcome, Record

Answer = Callable[[Load], list[Record]]


def serve(load_engine: Callable[[dict[str, Any]], Answer]) -> None:
    """Read options, then loads, from stdin. `load_engine` gets the options and returns what answers a load."""
    # Libraries print what they like; the conversation keeps the real stdout for itself.
    conversation = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = load_engine(json.loads(sys.stdin.readline()))
    print(json.dumps({"ready": True}), file=conversation, flush=True)
    for line in sys.stdin:
        load = Load.from_json(json.loads(line))
        try:
            outcome = Outcome(records=answer(load), client_cpu_s=0.0)
        except Exception as error:
            start = time.perf_counter()
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            outcome = Outcome(records=[Record(start=start, error=reason) for _ in load.requests], client_cpu_s=0.0)
        print(json.dumps(outcome.to_json()), file=conversation, flush=True)
