"""Runs `tailrace serve` until a signal arrives or a test run has ended: `python -m tailrace.testing.keeper PID FOLDER MODEL…`.

A test run that is killed can neither stop its server nor delete its folder. This process checks once a second whether
the run still exists.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

_LOOK_SECONDS = 1.0


def keep(owner: int, folder: str, models: list[str]) -> int:
    """Run the server, and return its exit code.

    Args:
        owner: Id of the test run's process. The server stops when this process ends.
        folder: Folder of the test run. It is deleted after the server's end, if the owner has ended too.
        models: Models for `tailrace serve`.
    """
    server: subprocess.Popen[bytes] | None = None
    is_stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal is_stopping
        is_stopping = True
        if server is not None:
            server.terminate()

    # Set before the server starts: it would otherwise outlive a signal that arrives during its start.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server = subprocess.Popen([sys.executable, "-m", "tailrace_cli", "serve", *models])
    if is_stopping:
        server.terminate()
    while True:
        try:
            code = server.wait(_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if not _exists(owner):
                server.terminate()
        else:
            if not _exists(owner):
                shutil.rmtree(folder, ignore_errors=True)
            return code


def _exists(process: int) -> bool:
    """Return True if a process runs. A process that has ended may remain listed until its exit code is read."""
    if _has_ended(process):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _has_ended(process: int) -> bool:
    """Return True if Linux lists the process as one that has ended."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[:1] == ["Z"]  # the name in parentheses may contain others


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
