"""Child processes: started in sessions of their own, logged, measured (CPU seconds, memory) and ended whatever happens."""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import psutil

ROOT = Path(__file__).parent.parent
BENCH = ROOT / ".bench"
LOGS = BENCH / "logs"
_MIB = 2**20
_SAMPLE_SECONDS = 0.5
_STOP_SECONDS = 15.0
# This machine is asked directly, whatever proxy leads out of it.
_OPENER = build_opener(ProxyHandler({}))


class PeerFailed(Exception):
    """A peer did not do what was asked; the message is the reason that stands in the results."""


class Child:
    """A process with its own descendants."""

    _running: "set[Child]" = set()

    def __init__(
        self, command: list[str], log: Path, environment: Mapping[str, str], *, piped: bool = False, cwd: Path = ROOT
    ) -> None:
        """`piped`: stdin and stdout are pipes for a conversation; else everything goes to the log."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else output,
                stderr=output,
                start_new_session=True,
            )
        self._running.add(self)

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raises PeerFailed, with the log's last line, if the process ended."""
        if self.process.poll() is not None:
            raise PeerFailed(f"its process ended with {self.process.returncode}: {last_line(self.log)}")

    def stop(self) -> None:
        """Ask the process to end; then end what is left of its session."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._running.discard(self)

    @classmethod
    def stop_all(cls) -> None:
        for child in list(cls._running):
            child.stop()


atexit.register(Child.stop_all)


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "its log is empty"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(url: str, children: list[Child], timeout_s: float) -> None:
    """Until `url` answers 200. Raises PeerFailed if a process ends before or the time is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for child in children:
            child.check()
        with contextlib.suppress(URLError, OSError), _OPENER.open(url, timeout=2.0):
            return
        time.sleep(0.05)
    raise PeerFailed(f"not ready after {timeout_s:.0f} s: {last_line(children[0].log)}")


def tree(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _sum(pid: int, value: Callable[[psutil.Process], float]) -> float:
    total = 0.0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += value(process)
    return total


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its living descendants."""
    return _sum(pid, lambda process: sum(process.cpu_times()[:2]))


def peak_mib(pids: Mapping[str, int]) -> float:
    """Of process trees by role: the largest resident memory that each living process ever had, all added up."""
    total = 0.0
    for pid in pids.values():
        for process in tree(pid):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                total += int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return total


class MemoryWatch:
    """Resident memory of several process trees, looked at twice a second. Pages that processes share are counted once for
    each of them."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        """`pids`: of the roots, by role."""
        self._pids = pids
        self._stopping = threading.Event()
        self._samples: list[tuple[float, dict[str, float]]] = []  # time.perf_counter(), MiB by role
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def mib_before(self, moment: float) -> dict[str, float]:
        """By role, at the last look before `moment` of time.perf_counter. Raises PeerFailed if there was none."""
        looks = [mib for seconds, mib in self._samples if seconds < moment]
        if not looks:
            raise PeerFailed("it was over before its memory was looked at")
        return looks[-1]

    def _watch(self) -> None:
        while True:
            now = time.perf_counter()
            mib = {
                role: _sum(pid, lambda process: process.memory_info().rss / _MIB) for role, pid in self._pids.items()
            }
            self._samples.append((now, mib))
            if self._stopping.wait(_SAMPLE_SECONDS):
                return

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join()
