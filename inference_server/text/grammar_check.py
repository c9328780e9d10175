"""Checks costly grammars in a separate process before this process compiles them.

llguidance bounds most of its work, but not all: some schemas of a hundred characters compile for minutes, and no thread
can interrupt the compilation. The process (grammar_worker.py) starts with the first costly grammar. Thread-safe.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

# Limits of a grammar's CPU time and memory in the worker. The wall-clock time may be longer, because the worker shares
# the CPU with the model.
CPU_SECONDS = 0.5
MEMORY_BYTES = 256 * 2**20
# Longest wall-clock time of a check, after which the grammar is refused, and longest time for the start of the worker.
WAIT_SECONDS = 1.5
_START_SECONDS = 10.0

# A cheap grammar is short, and has none of these: regular expressions, multiples, intersections, large numbers.
_MAX_CHEAP_LENGTH = 8_192
_COSTLY = re.compile(
    r'"(?:pattern|patternProperties|propertyNames|multipleOf|allOf|not)\\?"|& /|[0-9]{5}|[0-9][eE][+-]?[0-9]'
)

# If anyOf, oneOf or $ref has certain sibling keywords, llguidance merges these keywords with every alternative. Nested
# schemas of this kind produce exponentially many merged schemas.
_MERGED = frozenset(("properties", "additionalProperties", "required", "items", "prefixItems"))
_ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator", "nullable")
    + ("$defs", "definitions", "$schema", "$id", "$comment", "x-guidance")
)
_DECODER = json.JSONDecoder()

TOO_SLOW = "too slow"
WORKER_ENDED = "the process that compiles grammars ended"


def is_cheap(grammar: str) -> bool:
    """Return True if a grammar's source is certain to compile within milliseconds."""
    return len(grammar) <= _MAX_CHEAP_LENGTH and _COSTLY.search(grammar) is None and not _merges(grammar)


def _merges(grammar: str) -> bool:
    """Return True if a schema in a grammar's source has alternatives that are merged with other keywords."""
    starts = [0] if grammar.startswith("{") else [match.end() for match in re.finditer("%json ", grammar)]
    try:
        waiting = [_DECODER.raw_decode(grammar, start)[0] for start in starts]
    except (ValueError, RecursionError):
        return True
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            keys = part.keys() - _ANNOTATIONS
            num_alternatives = len(keys & {"anyOf", "oneOf"})
            if ("$ref" in keys and len(keys) > 1) or num_alternatives > 1 or (num_alternatives and keys & _MERGED):
                return True
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return False


class GrammarCheck:
    """Checks grammars for one tokenizer in a worker process, which is started when it is first needed."""

    def __init__(self, tokenizer_json: Callable[[], str], setup: Mapping[str, Any]) -> None:
        """Create a check whose process starts later.

        Args:
            tokenizer_json: Returns the content of the tokenizer's tokenizer.json, in one line.
            setup: Values for the worker: num_tokens, end_ids, limits.
        """
        self._tokenizer_json = tokenizer_json
        self._setup = {**setup, "cpu_seconds": CPU_SECONDS, "memory_bytes": MEMORY_BYTES}
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def run(self, grammar: str) -> int:
        """Compile a grammar in the worker. Returns the grammar's memory in bytes, or 0 where processes cannot fork.

        Args:
            grammar: The grammar in llguidance's serialised form.

        Raises:
            ValueError: The grammar cannot be compiled, or the worker ended. The message for a grammar is llguidance's,
                or TOO_SLOW.
        """
        if not hasattr(os, "fork"):
            return 0
        for _ in range(2):  # the worker may have been killed
            with self._lock:
                if self._worker is None or not self._worker.is_alive:
                    self._worker = _Worker(self._setup, self._tokenizer_json())
                worker = self._worker
            result = worker.check(grammar)
            if result is not None:
                break
        if result is None:
            raise ValueError(WORKER_ENDED)
        if result.get("error"):
            raise ValueError(result["error"])
        return int(result.get("bytes", 0))


class _Worker:
    def __init__(self, setup: Mapping[str, Any], tokenizer: str) -> None:
        program = Path(__file__).with_name("grammar_worker.py")
        # The worker runs in a separate session, so that Ctrl-C in a terminal signals the server only.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[dict[str, Any] | None]] = {}
        self._lock = threading.Lock()  # protects _waiting
        # A separate lock, because the reading thread must not wait while a long grammar is sent. Otherwise the worker
        # could block on its full output pipe and stop reading its input: a deadlock.
        self._sending = threading.Lock()
        self._ready = threading.Event()
        self.is_alive = True
        weakref.finalize(self, _stop, self._process)
        threading.Thread(target=_read, args=(weakref.ref(self), self._process.stdout), daemon=True).start()
        self._send(setup, tokenizer)

    def check(self, grammar: str) -> dict[str, Any] | None:
        """Return the worker's result, or None if the worker has ended.

        If the worker sends no result within WAIT_SECONDS, the result is the error TOO_SLOW.
        """
        self._ready.wait(_START_SECONDS)
        number, future = next(self._numbers), Future[dict[str, Any] | None]()
        with self._lock:
            self._waiting[number] = future
        started = time.monotonic()
        if not self.is_alive or not self._send({"id": number}, json.dumps(grammar)):
            return None
        try:
            return future.result(max(0.0, started + WAIT_SECONDS - time.monotonic()))
        except FutureTimeout:
            self._send({"kill": number})
            return {"error": TOO_SLOW}
        finally:
            with self._lock:
                self._waiting.pop(number, None)

    def take(self, message: dict[str, Any]) -> None:
        """Pass a message of the worker to the thread that waits for it."""
        if "ready" in message:
            self._ready.set()
            return
        with self._lock:
            future = self._waiting.get(message["id"])
        if future is not None and not future.done():
            future.set_result(message)

    def end(self) -> None:
        """End all waits, because the worker has ended."""
        self.is_alive = False
        self._ready.set()
        with self._lock:
            waiting = list(self._waiting.values())
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _send(self, message: Mapping[str, Any], text: str | None = None) -> bool:
        """Send a message, and a line of JSON that belongs to it. Returns False if the worker has ended."""
        assert self._process.stdin is not None
        line = json.dumps(message).encode() + b"\n" + (b"" if text is None else text.encode() + b"\n")
        try:
            with self._sending:
                self._process.stdin.write(line)
                self._process.stdin.flush()
        except OSError:
            self.is_alive = False
            return False
        return True


def _read(reference: "weakref.ref[_Worker]", lines: Any) -> None:
    for line in lines:
        if (worker := reference()) is not None:
            worker.take(json.loads(line))
        del worker
    if (worker := reference()) is not None:
        worker.end()


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process and close its pipes. If only its input were closed, it would first finish its current work."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                pass
