"""Starts Tailrace's processes as a user does, reads their output by line, and sends them signals."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Seeded by the system, because tests seed the global generator.
_RANDOM = random.SystemRandom()
# Outside the ranges from which Linux (from 32768) and macOS (from 49152) choose the ports of outgoing connections. Such a
# connection of another test could otherwise take the port before the server does.
_PORTS = range(20_000, 32_000)


def free_address() -> str:
    """Return an address of 127.0.0.1 whose port is free now. No outgoing connection takes it later."""
    while True:
        port = _RANDOM.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return f"127.0.0.1:{port}"


def children(pid: int) -> list[int]:
    """Return the ids of the children of `pid`, in the order of their start."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, timeout=5)
    return sorted(int(line) for line in found.stdout.split())


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Process:
    """A child process with stdout and stderr in one stream of lines."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child
        self.pid = child.pid
        self.lines: list[str] = []

    async def line_with(self, text: str, *, seconds: float = 60.0) -> str:
        """Return the next line that contains `text`. Raises AssertionError with all output if the process ends before."""
        assert self._child.stdout is not None
        async with asyncio.timeout(seconds):
            while line := (await self._child.stdout.readline()).decode():
                self.lines.append(line)
                if text in line:
                    return line
        raise AssertionError(f"ended without {text!r}:\n{''.join(self.lines)}")

    async def exit_code(self, *, seconds: float = 30.0) -> int:
        """Return the exit code once the process has ended. Raises TimeoutError with all output after `seconds`."""
        assert self._child.stdout is not None
        try:
            # asyncio waits for the end of the output, which the process may share with its own children.
            async with asyncio.timeout(seconds):
                while line := (await self._child.stdout.readline()).decode():
                    self.lines.append(line)
                return await self._child.wait()
        except TimeoutError:
            raise TimeoutError(f"still running after {seconds:.0f} s:\n{''.join(self.lines)}") from None

    def send(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    async def end(self) -> None:
        """Stop the process with SIGTERM, so that it can stop its own children. Kill it if that takes too long."""
        if self._child.returncode is None:
            self.send(signal.SIGTERM)
            self.send(signal.SIGTERM)
        try:
            await self.exit_code(seconds=20)
        except TimeoutError:
            os.killpg(self.pid, signal.SIGKILL)


@asynccontextmanager
async def process(module: str, *arguments: str, **environment: str) -> AsyncIterator[Process]:
    """Run `python -m module arguments…` with TAILRACE_* settings. Kills it at the end if it is still running."""
    settings = {f"TAILRACE_{name.upper()}": value for name, value in environment.items()}
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        cwd=ROOT,
        env={**os.environ, **settings, "PYTHONUNBUFFERED": "1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    started = Process(child)
    try:
        yield started
    finally:
        await started.end()
