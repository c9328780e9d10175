"""Runs `python -m inference_server` with end tokens ignored, so that every reply has the requested length.

The public API has no field to ignore end tokens, and replies of different lengths cannot be compared.
"""

import os
import sys
from types import ModuleType

from inference_server import __main__ as program
from inference_server.grpc_api import server

_END_IDS = "_end_ids"
_import_startup = server.import_startup


def hosting_without_end_tokens() -> ModuleType:
    """Return the module that loads models, with end tokens disabled.

    Raises AttributeError if the module has no function `_end_ids`.
    """
    hosting = _import_startup()
    if not callable(getattr(hosting, _END_IDS)):
        raise AttributeError(f"inference_server.serving.startup.{_END_IDS}")
    setattr(hosting, _END_IDS, lambda *_: set())
    return hosting


if __name__ == "__main__":
    server.import_startup = hosting_without_end_tokens
    exit_code = program.main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
