"""Runs the `tailrace` command as a user does."""

import subprocess
import sys
from typing import IO

from tests.support.processes import ROOT


def tailrace(
    *arguments: str,
    environment: dict[str, str],
    text: str = "",
    seconds: float = 60,
    stdout: IO[str] | int = subprocess.PIPE,
) -> subprocess.CompletedProcess[str]:
    """Return the finished command with its exit code, stdout and stderr.

    Args:
        arguments: Words of the command line after `tailrace`.
        environment: Every environment variable of the command.
        text: Standard input.
        seconds: Time after which the test fails.
        stdout: Place of the output, if it is not captured.
    """
    return subprocess.run(
        [sys.executable, "-m", "tailrace_cli", *arguments],
        input=text,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=seconds,
        cwd=ROOT,
        env=environment,
    )
