"""`python -m inference_server`: serves the catalog's models over gRPC until SIGINT or SIGTERM.

After the first signal, running replies may finish within TAILRACE_SHUTDOWN_GRACE_SECONDS. A second signal aborts them.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from inference_server import garbage
from tailrace_shared import logs
from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.parent import report_port, watch_parent
from tailrace_shared.platforms import WINDOWS_SENTENCE, is_windows
from tailrace_shared.variables import check_variables

if TYPE_CHECKING:
    from inference_server.settings.server import Settings

logger = logging.getLogger(__name__)

# Iterations that an idle thread of GNU OpenMP (libgomp) spins before it sleeps: about 200 us, longer than the gap
# between two kernels. With the default of 300,000, spinning threads would occupy the core of the thread that
# sends the tokens.
SPIN_COUNT = "5000"


def main() -> int:
    """Run the server and return the exit code: 0 after a signal, 1 after an error.

    A ConfigurationError is printed as one line. Other exceptions are not caught.
    """
    if is_windows():
        print(f"tailrace server: {WINDOWS_SENTENCE}", file=sys.stderr)
        return 1
    watch_parent()
    limit_spinning()
    garbage.pause()  # resumed after the last import (grpc_api.server.import_startup)
    from inference_server.settings.server import Settings

    try:
        settings = Settings.from_environment()
        logs.configure("inference_server", settings.log_level, settings.log_format)
        check_variables(logger)
        return asyncio.run(serve(settings))
    except ConfigurationError as error:
        print(f"tailrace server: {error}", file=sys.stderr)
        return 1


def limit_spinning() -> None:
    """Set GOMP_SPINCOUNT unless OMP_WAIT_POLICY is set. OpenMP reads these variables when torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


async def serve(settings: "Settings") -> int:
    """Serve until a signal arrives, and return the exit code: 0, or 1 if an engine has failed.

    Raises:
        ConfigurationError: The server cannot start.
    """
    from inference_server.grpc_api.server import Server

    stopping, cutting = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (cutting if stopping.is_set() else stopping).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)

    server = Server(settings)
    report_port(await server.listen())
    loading = asyncio.create_task(server.load())
    try:
        await _first(loading, stopping.wait())
        if loading.done():
            await loading  # raises the error of a failed load
            await _first(stopping.wait(), server.broken.wait())
        if server.broken.is_set():
            await server.drain(0)
        elif stopping.is_set():
            await _first(server.drain(settings.shutdown_grace_seconds), cutting.wait())
    finally:
        loading.cancel()
        await server.stop()
    return 1 if server.broken.is_set() else 0


async def _first(*awaitables: Awaitable[object]) -> None:
    """Wait for the first of several awaitables and cancel the others, except tasks that were passed in."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task, given in zip(tasks, awaitables, strict=True):
        if task is not given:
            task.cancel()


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # After a signal during loading, sys.exit would wait for the thread pools that read the weights.
    os._exit(exit_code)
