"""Compiles grammars in processes that may be killed. grammar_check.py starts this program, which imports nothing of
this project.

Reads a line of JSON with the setup, the tokenizer's file in one line, then two lines for each grammar: its number and
its text. A line with `kill` ends the compilation of a grammar. Each grammar is compiled in a fork of this process, with
limits on its CPU time and memory, and then tested with a few random tokens. Writes a line of JSON when it is ready, and
one for each grammar. Ends when its standard input ends.
"""

import json
import os
import random
import resource
import selectors
import signal
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

# Maximum CPU time for one mask, in seconds. In a running reply, the model's other sequences wait for the mask.
_MAX_STEP_SECONDS = 0.05
_NUM_STEPS = 24
_MAX_ERROR_LENGTH = 4_000
# Largest number of grammars compiled at the same time. Together they may use this multiple of the memory limit.
_MAX_JOBS = 16
# Seconds after which a compilation gets the lowest priority.
_SHORT_SECONDS = 0.1


def main() -> None:
    """Check grammars until the standard input ends."""
    os.nice(5)  # the model runs on the same cores
    inbox = _Lines(0)
    lines: list[bytes] = []
    while len(lines) < 2:
        if not (more := inbox.read()) and more is None:
            return
        lines += more
    setup = json.loads(lines[0])
    compiler = _Compiler(lines[1].decode(), setup)
    _write({"ready": True})
    _serve(inbox, lines[2:], compiler, setup)


def _serve(inbox: "_Lines", lines: list[bytes], compiler: "_Compiler", setup: dict[str, Any]) -> None:
    jobs: dict[int, _Job] = {}
    waiting: dict[int, str] = {}  # grammars by number, in the order of arrival
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        while True:
            while len(lines) >= 2 or (lines and b"kill" in lines[0]):
                message = json.loads(lines.pop(0))
                if (number := message.get("kill")) is not None:
                    waiting.pop(number, None)
                    _kill(job for job in jobs.values() if job.number == number)
                else:
                    waiting[message["id"]] = json.loads(lines.pop(0))
            for number in startable(waiting, len(jobs)):
                _start(number, waiting.pop(number), compiler, jobs, selector, setup)
            for key, _ in selector.select(_SHORT_SECONDS if jobs else None):
                if key.fd != 0:
                    _collect(jobs, key.fd, selector)
                elif (more := inbox.read()) is not None:
                    lines += more
                else:
                    _kill(jobs.values())
                    return
            _slow_down(jobs.values())


def startable(waiting: Iterable[int], num_running: int) -> list[int]:
    """Return the numbers of the waiting grammars that may be compiled now, the first ones of `waiting`."""
    return list(islice(waiting, max(0, _MAX_JOBS - num_running)))


def _slow_down(jobs: "Iterable[_Job]") -> None:
    """Give the lowest priority to compilations that take longer than _SHORT_SECONDS: the model gets the CPU first."""
    for job in jobs:
        if not job.is_slow and time.monotonic() - job.started > _SHORT_SECONDS:
            job.is_slow = True
            os.setpriority(os.PRIO_PROCESS, job.pid, 19)


def _kill(jobs: "Iterable[_Job]") -> None:
    for job in jobs:
        os.kill(job.pid, signal.SIGKILL)


class _Lines:
    """Splits the data of a file descriptor into lines."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest: list[bytes] = []

    def read(self) -> list[bytes] | None:
        """Read once. Returns the lines that are now complete, or None at the end."""
        data = os.read(self._descriptor, 1 << 20)
        if not data:
            return None
        if b"\n" not in data:
            self._rest.append(data)
            return []
        *lines, rest = b"".join((*self._rest, data)).split(b"\n")
        self._rest = [rest]
        return lines


class _Job:
    """A grammar that a child process compiles."""

    def __init__(self, number: int, pid: int) -> None:
        self.number = number
        self.pid = pid
        self.result = b""
        self.started = time.monotonic()
        self.is_slow = False


class _Compiler:
    def __init__(self, tokenizer: str, setup: dict[str, Any]) -> None:
        from llguidance import LLTokenizer

        self._tokenizer = LLTokenizer(tokenizer, n_vocab=setup["num_tokens"], eos_token=setup["end_ids"])
        self._limits = setup["limits"]

    def verdict(self, grammar: str) -> dict[str, Any]:
        """Compile a grammar and test it. Returns an error, or the memory in bytes that the grammar uses."""
        from llguidance import LLMatcher, LLParserLimits

        before = _resident_bytes()
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LLParserLimits(**self._limits))
        dice = random.Random(1)  # noqa: S311 (not a secret)
        for step in range(_NUM_STEPS):
            started = time.thread_time()
            if matcher.is_error():
                # An error in a later step depends on the tokens, and would end only a reply with these tokens.
                return {"error": matcher.get_error()} if step < 2 else {"bytes": _resident_bytes() - before}
            mask = int.from_bytes(matcher.compute_bitmask(), "little")
            if matcher.is_stopped() or not mask:
                break
            matcher.consume_token(_drawn(mask, dice))
            if step and time.thread_time() - started > _MAX_STEP_SECONDS:
                return {"error": "too slow"}
        return {"error": matcher.get_error()} if matcher.is_error() else {"bytes": _resident_bytes() - before}


def _drawn(mask: int, dice: random.Random) -> int:
    """Return the index of the lowest set bit at or above a random position."""
    length = mask.bit_length()
    start = dice.randrange(length)
    rest = mask >> start
    return start + (rest & -rest).bit_length() - 1


def _start(
    number: int,
    grammar: str,
    compiler: _Compiler,
    jobs: "dict[int, _Job]",
    selector: selectors.BaseSelector,
    setup: dict[str, Any],
) -> None:
    """Fork a process that compiles a grammar."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _run_child(compiler, grammar, setup, writer)
    os.close(writer)
    jobs[reader] = _Job(number, pid)
    selector.register(reader, selectors.EVENT_READ)


def _run_child(compiler: _Compiler, grammar: str, setup: dict[str, Any], writer: int) -> None:
    """Compile within the limits and exit. The signal of the CPU timer ends the process."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # discards the compiler's reports that memory ran out
        signal.setitimer(signal.ITIMER_PROF, setup["cpu_seconds"])
        most = _virtual_bytes() + setup["memory_bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        verdict = compiler.verdict(grammar)
        if error := verdict.get("error"):
            verdict = {"error": error[:_MAX_ERROR_LENGTH]}
        os.write(writer, json.dumps(verdict).encode())
    finally:
        os._exit(0)


def _collect(jobs: "dict[int, _Job]", reader: int, selector: selectors.BaseSelector) -> None:
    """Read a part of a child's result. When the child has ended, write the result."""
    job = jobs[reader]
    if data := os.read(reader, 1 << 16):
        job.result += data
        return
    selector.unregister(reader)
    os.close(reader)
    del jobs[reader]
    _, status = os.waitpid(job.pid, 0)
    try:
        result = json.loads(job.result)
    except ValueError:
        is_time = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGKILL)
        result = {"error": "too slow" if is_time else "too large"}
    _write({"id": job.number, **result})


def _write(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _virtual_bytes() -> int:
    """Return the size of the address space, or 0 where the system does not report it."""
    return _statm(0)


def _resident_bytes() -> int:
    return _statm(1)


def _statm(column: int) -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[column]) * resource.getpagesize()
    except OSError:
        return 0


if __name__ == "__main__":
    main()
