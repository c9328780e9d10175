"""Runs the programs of a project: until they end, or while a block runs."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.clients.node_programs import environment
from tests.support.processes import free_address

_SECONDS = 100
_STOP_SECONDS = 30


@dataclass
class Done:
    """A program that has ended: its exit code, and its whole output."""

    code: int
    output: str


@dataclass
class Running:
    """A program that serves HTTP at `url`. `log` is the file of its output."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def get(self, place: str) -> requests.Response:
        return requests.get(f"{self.url}/api/{place}", timeout=60)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(_STOP_SECONDS)


@dataclass
class Project:
    """A folder with Workers. `home` replaces the user's home folder, so that there is no login."""

    folder: Path
    home: Path

    def environment(self, **settings: str) -> dict[str, str]:
        bin_folder = self.folder / "node_modules" / ".bin"
        base = environment(HOME=str(self.home), XDG_CONFIG_HOME=str(self.home), **settings)
        path = settings.get("PATH", f"{bin_folder}:{self.home / 'bin'}:{base['PATH']}")
        return base | {"PATH": path}

    def run(self, *command: str, **settings: str) -> Done:
        """Run a program until it ends."""
        done = subprocess.run(
            [shutil.which(command[0], path=self.environment(**settings)["PATH"]) or command[0], *command[1:]],
            cwd=self.folder,
            env=self.environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
        )
        return Done(done.returncode, done.stdout)

    @contextmanager
    def serving(self, *command: str, path: str = "/api/greeting", **settings: str) -> Iterator[Running]:
        """Run a program that serves at a free port while the block runs. PORT in the command is that port."""
        address = free_address()
        words = [word.replace("PORT", address.split(":")[1]) for word in command]
        log = self.folder.parent / f"{address.replace(':', '-')}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                words,
                cwd=self.folder,
                env=self.environment(**settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        running = Running(process, f"http://{address}", log)
        try:
            self._wait(running, path)
            yield running
        finally:
            if process.poll() is None:
                running.stop()
            with_group_ended(process.pid)

    def _wait(self, running: Running, path: str) -> None:
        deadline = time.monotonic() + _SECONDS
        while True:
            assert running.process.poll() is None and time.monotonic() < deadline, running.output()
            try:
                if requests.get(running.url + path, timeout=20).status_code == 200:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.1)

    def copies(self) -> list[str]:
        """Return the names of the changed configurations in the project."""
        return [path.name for path in self.folder.glob(".tailrace-*")]


def with_group_ended(group: int) -> None:
    """Kill what is left of a process group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def streamed(body: str) -> str:
    """Return the text of a reply as a stream of events."""
    *events, done = [event for event in body.strip().split("\n\n") if not event.startswith(":")]
    assert done == "data: [DONE]", body
    return "".join(json.loads(event.removeprefix("data: "))["response"] for event in events)


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until a condition holds. Connections that the other side refuses or ends do not count."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except requests.RequestException:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.1)
