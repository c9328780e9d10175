"""Runs the commands of a page as a reader would: in the project's folder, servers beside, each stopped with Ctrl+C."""

import os
import re
import signal
import subprocess
import time
import uuid
from pathlib import Path

import psutil

from tests.frameworks.pages import Block, plain

_COMMAND_SECONDS = 200
_READY_SECONDS = 150
_STOP_SECONDS = 15
# What wrangler, Vite, Astro and Nuxt print when they are ready.
_READY = re.compile(r"(?:Ready on|Local:?) +(http://[\w.\[\]:]+:\d+)")
_PAGES_ADDRESS = re.compile(r"http://localhost:\d+(?=[/\s\"'?]|$)")
_MARK = "TAILRACE_TEST_TERMINAL"


class Terminal:
    """A reader's terminals in one project.

    `environment` has the variables of all commands. A variable with an id of this object finds processes that remain.
    """

    def __init__(self, project: Path, environment: dict[str, str]) -> None:
        self._project = project
        self._mark = uuid.uuid4().hex
        self._environment = {**environment, _MARK: self._mark}
        self._server: subprocess.Popen[bytes] | None = None
        self._log = project.parent / f"{project.name}-server.log"
        self._address = ""
        self.output = ""

    def run(self, block: Block) -> None:
        """Run the block's commands. Raises AssertionError with the output if one fails, or if a server is not ready.

        Before commands that do not call the server, it stops, as the pages say.
        """
        if block.serves:
            self._serve(block)
            return
        if not _PAGES_ADDRESS.search(block.text):
            left = self.close()
            assert not left, f"{block}: still running after Ctrl+C: {left}"
        self.execute(_PAGES_ADDRESS.sub(lambda found: self._address or found[0], block.text))

    def execute(self, text: str) -> None:
        """Run commands that end by themselves. Raises AssertionError with the output if one fails."""
        self.output = self._finish(text)

    @property
    def server_output(self) -> str:
        """Return what the server has printed so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def close(self) -> list[str]:
        """Stop the server with Ctrl+C. Returns the command lines of processes that remained, which are then killed."""
        if self._server is not None:
            self._interrupt(self._server)
            self._server = None
        deadline = time.monotonic() + _STOP_SECONDS
        while (left := self._remaining()) and time.monotonic() < deadline:
            time.sleep(0.1)
        names = [" ".join(process.cmdline()) for process in left if process.is_running()]
        for process in left:
            process.kill()
        return names

    def _finish(self, text: str) -> str:
        child = subprocess.Popen(
            ["sh", "-ec", text],
            cwd=self._project,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = child.communicate(timeout=_COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            output, _ = child.communicate()
            raise AssertionError(f"{text}ran too long\n{output.decode()}\n{self.server_output}") from None
        result = output.decode(errors="replace")
        assert child.returncode == 0, f"{text}\n{result}\n{self.server_output}"
        return result

    def _serve(self, block: Block) -> None:
        assert self._server is None, f"{block}: a server is running already"
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(
                ["sh", "-ec", block.text],
                cwd=self._project,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _READY_SECONDS
        while (found := _READY.search(plain(self.server_output))) is None:
            assert self._server.poll() is None and time.monotonic() < deadline, f"{block}\n{self.server_output}"
            time.sleep(0.1)
        self._address = found[1]

    def _interrupt(self, server: subprocess.Popen[bytes]) -> None:
        # As a terminal does: the whole foreground group receives the signal.
        try:
            os.killpg(server.pid, signal.SIGINT)
            server.wait(_STOP_SECONDS)
        except ProcessLookupError:
            pass
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()

    def _remaining(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == self._mark:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found
