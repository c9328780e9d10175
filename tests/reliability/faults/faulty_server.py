"""Runs `python -m inference_server` with a fault in its model while the file TAILRACE_FAULT_FILE contains its name.

Faults are hang, raise and slow. The file's second word is a number: `raise` fails in that many forward passes, and with
`slow` each pass takes that many seconds longer.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from inference_server import __main__ as program
from inference_server.grpc_api import server

FAULT = Path(os.environ["TAILRACE_FAULT_FILE"])
_import_startup = server.import_startup


def _faulty(forward: Callable[..., Any]) -> Callable[..., Any]:
    def with_fault(*arguments: Any) -> Any:
        while (words := FAULT.read_text().split()) == ["hang"]:
            time.sleep(0.02)
        if words and words[0] == "slow":
            time.sleep(float(words[1]))
        elif words:
            left = int(words[1]) - 1
            FAULT.write_text(f"raise {left}" if left else "")
            raise ArithmeticError("a fault that was ordered")
        return forward(*arguments)

    return with_fault


def _faulty_hosting() -> ModuleType:
    hosting = _import_startup()
    from inference_server.model.runner import ModelRunner

    for name in ("decode", "prefill", "mixed", "probe"):
        setattr(ModelRunner, name, _faulty(getattr(ModelRunner, name)))
    return hosting


if __name__ == "__main__":
    server.import_startup = _faulty_hosting
    exit_code = program.main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
