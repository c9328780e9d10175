"""Starts child processes in separate sessions, logs and measures them (CPU, memory), and always terminates them."""

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
# Folder of the peers' virtual environments, their builds and all logs. Git ignores the default folder `.bench/`.
BENCH = Path(os.environ.get("BENCH_FOLDER") or ROOT / ".bench").absolute()
LOGS = BENCH / "logs"
_MIB = 2**20
_SAMPLE_SECONDS = 0.5
_STOP_SECONDS = 15.0
# Longest wait for SIGSTOP to take effect on a busy machine.
_PAUSE_SECONDS = 2.0
# Requests to this machine bypass any proxy that is set in the environment.
_OPENER = build_opener(ProxyHandler({}))


class PeerFailed(Exception):
    """Raised if a peer failed. The results record the message as the reason."""


class Child:
    """A process and its descendants, in a separate session."""

    _running: "set[Child]" = set()

    def __init__(
        self, command: list[str], log: Path, environment: Mapping[str, str], *, piped: bool = False, cwd: Path = ROOT
    ) -> None:
        """Start `command`. With `piped`, stdin and stdout are pipes; else stdout goes to the log, as stderr does."""
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
        """The process id, which is also the id of its session."""
        return self.process.pid

    def check(self) -> None:
        """Raise PeerFailed with the log's last line if the process has ended."""
        if self.process.poll() is not None:
            raise PeerFailed(f"its process ended with {self.process.returncode}: {last_line(self.log)}")

    def pause(self) -> None:
        """Stop the process and its descendants (SIGSTOP) until `resume`. They keep their memory and use no CPU time.

        A server that spins while it waits for requests would otherwise slow the peer that is measured. Returns once all
        processes have stopped, or after _PAUSE_SECONDS.
        """
        self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + _PAUSE_SECONDS
        while any(map(_is_active, tree(self.pid))) and time.monotonic() < deadline:
            time.sleep(0.005)

    def resume(self) -> None:
        """Continue the processes that `pause` stopped. Has no effect on running processes."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the process's group, and to every descendant in another process group."""
        if self.process.poll() is not None:
            return
        for process in tree(self.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(process.pid) != self.pid:
                    os.kill(process.pid, number)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def stop(self) -> None:
        """Send SIGTERM to the process, wait for its end, then kill its group and its descendants.

        A paused process continues first. The wait is at most _STOP_SECONDS.
        """
        processes = tree(self.pid)
        if self.process.poll() is None:
            self.resume()
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for process in processes:  # some servers put their workers into other groups
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._running.discard(self)

    @classmethod
    def stop_all(cls) -> None:
        """Stop every child that is still running."""
        for child in list(cls._running):
            child.stop()


atexit.register(Child.stop_all)


def last_line(log: Path) -> str:
    """Return the log's last line that is not empty, at most 300 characters."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "its log is empty"


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(url: str, children: list[Child], timeout_s: float) -> None:
    """Wait until `url` answers 200. Raises PeerFailed if a process ends first, or after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for child in children:
            child.check()
        with contextlib.suppress(URLError, OSError), _OPENER.open(url, timeout=2.0):
            return
        time.sleep(0.05)
    raise PeerFailed(f"not ready after {timeout_s:.0f} s: {last_line(children[0].log)}")


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and its live descendants; empty if it has ended."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _is_active(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _sum(pid: int, value: Callable[[psutil.Process], float]) -> float:
    total = 0.0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += value(process)
    return total


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process and its live descendants."""
    return _sum(pid, lambda process: sum(process.cpu_times()[:2]))


def peak_mib(pids: Mapping[str, int]) -> float:
    """Return the sum of the peak resident memory of all live processes of these trees, in MiB. `pids`: their roots."""
    total = 0.0
    for pid in pids.values():
        for process in tree(pid):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                total += int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return total


class MemoryWatch:
    """Resident memory of several process trees, sampled twice a second. Shared pages count once for each process."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        """Create a watch. `pids`: process ids of the roots of the trees, by role."""
        self._pids = pids
        self._stopping = threading.Event()
        self._samples: list[tuple[float, dict[str, float]]] = []  # pairs of time.perf_counter() and MiB by role
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def mib_before(self, moment: float) -> dict[str, float]:
        """Return the MiB by role in the last sample before `moment` (time.perf_counter).

        Raises PeerFailed if there is no such sample.
        """
        samples = [mib for seconds, mib in self._samples if seconds < moment]
        if not samples:
            raise PeerFailed("it ended before its memory was sampled")
        return samples[-1]

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
        """Sample until the block ends."""
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join()
