"""The state of a simulated GPU: streams, captures, pinned memory, host waits, and the rules that code has broken.

Nothing here computes. dispatch.py executes operators on the CPU and reports to this state; patches.py connects torch.cuda.
"""

import threading
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from tests.support.rehearsal.recording import RecordedGraph

_PACKAGE = "/inference_server/"


class Refused(RuntimeError):
    """An error that a GPU, or CUDA's stream capture, would have raised."""


@dataclass(eq=False)
class Work:
    """An asynchronous copy, or an event's place in a stream. `complete` is called when the host has waited for it."""

    complete: Callable[[], None]
    is_done: bool = False


@dataclass(eq=False)
class Stream:
    """A CUDA stream. Operators run at their launch; copies and events are open until the host waits for them."""

    is_broken: bool = False  # a capture of it failed, and the thread may still be on it
    capture: "Capture | None" = None
    _open: list[Work] = field(default_factory=list)

    @property
    def open(self) -> list[Work]:
        """The work on this stream, and on those that it waits for, that the host has not waited for."""
        self._open = [work for work in self._open if not work.is_done]
        return self._open

    def wait_stream(self, other: "Stream") -> None:
        self._open = list(dict.fromkeys([*self.open, *other.open]))

    def wait_event(self, event: "Event") -> None:
        self._open = list(dict.fromkeys([*self.open, *event.open]))

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        current().wait("stream synchronize", self)

    def query(self) -> bool:
        return not self.open


@dataclass(eq=False)
class Capture:
    """The recording of one graph."""

    graph: "RecordedGraph"
    error_mode: str
    thread: int
    is_broken: bool = False


class Event:
    """A CUDA event. `query` returns False once after each `record`, because a GPU is rarely as fast as its host."""

    def __init__(self, *_: object, **__: object) -> None:
        self._work: list[Work] = []
        self._num_queries = 0

    @property
    def open(self) -> list[Work]:
        """The work up to the event that the host has not waited for."""
        return [work for work in self._work if not work.is_done]

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or current().stream
        stream.open.append(Work(lambda: None))
        self._work = list(stream.open)
        self._num_queries = 0

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current().stream).wait_event(self)

    def synchronize(self) -> None:
        if self.open:  # else a later event was waited for
            current().wait("event", self)

    def query(self) -> bool:
        self._num_queries += 1
        if self._num_queries > 1:
            current().complete(self)
        return not self.open

    def elapsed_time(self, other: "Event") -> float:
        return 1.0


class SimulatedGpu:
    """One simulated GPU.

    Attributes:
        capability: Compute capability.
        has_triton: True if operators of ours stand for one kernel each; False computes them by torch's operations.
        violations: Rules that were broken, each with the operator and the line of the server's code.
        log: Host waits and replays, in order: ("wait", kind) and ("replay", the graph).
        graphs: Graphs that were recorded completely.
        default_stream: The stream of threads that have not chosen another.
        operators: Number of executed operators by name, without those of replays.
        before_operator: Called with the name of every operator before it runs; may raise.
    """

    def __init__(self, *, capability: tuple[int, int] = (9, 0), has_triton: bool = True) -> None:
        self.capability = capability
        self.has_triton = has_triton
        self.violations: list[str] = []
        self.log: list[tuple[str, Any]] = []
        self.graphs: list[RecordedGraph] = []
        self.operators: Counter[str] = Counter()
        self.before_operator: Callable[[str], None] = lambda name: None
        self._pinned: dict[int, torch.UntypedStorage] = {}
        self._captures: list[Capture] = []
        self._lock = threading.Lock()
        self._thread = threading.local()
        self.default_stream = Stream()
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet([self.default_stream])

    @property
    def stream(self) -> Stream:
        """The current stream of the calling thread."""
        return getattr(self._thread, "stream", self.default_stream)

    @stream.setter
    def stream(self, stream: Stream) -> None:
        self._streams.add(stream)
        self._thread.stream = stream

    @property
    def capture(self) -> Capture | None:
        """The capture that the calling thread's operators belong to."""
        return self.stream.capture

    def refuse(self, reason: str, *, breaks_capture: bool = True) -> Refused:
        """Record a violation. Returns the error to raise."""
        self.violations.append(f"{reason} [{_caller()}]")
        if breaks_capture and self.capture is not None:
            self.capture.is_broken = True
        return Refused(reason)

    def launches(self, name: str) -> None:
        """Report that the calling thread launches an operator or a graph."""
        if self.stream.is_broken:
            raise self.refuse(f"{name} runs on the stream of a failed capture")
        self.before_operator(name)

    def allocates(self, name: str) -> None:
        """Report that an operator needs new memory, for which the driver may be called."""
        for capture in list(self._captures):
            if capture.error_mode == "global" and capture.thread != threading.get_ident():
                capture.is_broken = True
                raise self.refuse(f"{name} allocates memory during another thread's capture in mode global")

    def wait(self, kind: str, waited_for: Stream | Event | None = None) -> None:
        """Report that the host waits for the GPU. Raises Refused during a capture."""
        if self.capture is not None:
            raise self.refuse(f"operation not permitted when stream is capturing: {kind}")
        self.log.append(("wait", kind))
        self.complete(waited_for or self.stream)

    def synchronize(self, *_: object) -> None:
        """Wait for every stream. Raises Refused while any thread captures: the device includes its stream."""
        for capture in list(self._captures):
            if capture.thread != threading.get_ident():
                capture.is_broken = True
                raise self.refuse("device synchronize during another thread's capture")
        self.wait("device synchronize")
        for stream in list(self._streams):
            self.complete(stream)

    def complete(self, waited_for: Stream | Event) -> None:
        """Finish the work that a wait covers."""
        for work in waited_for.open:
            if not work.is_done:
                work.is_done = True
                work.complete()

    def start_copy(self, complete: Callable[[], None]) -> None:
        """Begin an asynchronous copy on the current stream. `complete` runs once, when the host has waited for it."""
        self.stream.open.append(Work(complete))

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Mark a CPU tensor's memory as pinned. Returns the tensor."""
        storage = tensor.untyped_storage()
        self._pinned[storage._cdata] = storage
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._pinned

    def begin_capture(self, graph: "RecordedGraph", error_mode: str) -> None:
        """Start to record the current stream's operators. Raises Refused if a capture is under way."""
        with self._lock:
            if self._captures:
                raise self.refuse("a capture begins during another capture", breaks_capture=False)
            capture = Capture(graph, error_mode, threading.get_ident())
            self._captures.append(capture)
            self.stream.capture = capture

    def end_capture(self) -> None:
        """Finish the current stream's recording. Raises Refused if it failed; the thread then stays on the stream."""
        stream, capture = self.stream, self.stream.capture
        if capture is None:
            raise self.refuse("a capture ends that did not begin on this stream")
        with self._lock:
            self._captures.remove(capture)
        stream.capture = None
        if capture.is_broken:
            stream.is_broken = True
            raise Refused("CUDA error: operation failed due to a previous error during capture")
        self.graphs.append(capture.graph)

    def waits_between_replays(self) -> list[list[str]]:
        """Return the kinds of the host's waits between each two consecutive replays."""
        waits: list[list[str]] = [[]]
        for kind, value in self.log:
            if kind == "replay":
                waits.append([])
            else:
                waits[-1].append(value)
        return waits[1:-1]


class StreamContext:
    """Replaces torch.cuda.stream: runs a block on a stream. None changes nothing."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream
        self._before: Stream | None = None

    def __enter__(self) -> None:
        gpu = current()
        self._before = gpu.stream
        gpu.stream = self._stream or gpu.stream

    def __exit__(self, *_: object) -> None:
        assert self._before is not None
        current().stream = self._before


def _caller() -> str:
    """Return file and line of the server's code that is running, the innermost frame."""
    frames = [frame for frame in traceback.extract_stack() if _PACKAGE in frame.filename]
    if not frames:
        return "outside the server"
    return f"{frames[-1].filename.rpartition(_PACKAGE)[2]}:{frames[-1].lineno} {frames[-1].line}"


_current: list[SimulatedGpu] = []


def current() -> SimulatedGpu:
    """Return the simulated GPU in use."""
    return _current[-1]


@contextmanager
def in_use(gpu: SimulatedGpu) -> Iterator[SimulatedGpu]:
    """Make `gpu` the simulated GPU of this process for a block."""
    _current.append(gpu)
    try:
        yield gpu
    finally:
        _current.remove(gpu)
