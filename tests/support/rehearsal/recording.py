"""CUDA graphs: lists of operators with fixed memory, which a replay executes again with every Python value frozen."""

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch.utils._pytree import tree_flatten

from tests.support.rehearsal.fake_tensor import Allocation, CudaTensor
from tests.support.rehearsal.gpu import Stream, StreamContext, current


@dataclass(frozen=True)
class _Node:
    """One recorded operator.

    Attributes:
        name: The operator's name.
        call: Executes it on the recorded memory.
        fresh: The CPU tensors that it created.
        mutates: True if it changes an input.
    """

    name: str
    call: Callable[[], Any]
    fresh: list[torch.Tensor]
    mutates: bool


class RecordedGraph:
    """Replaces torch.cuda.CUDAGraph.

    Attributes:
        kernels: Number of recorded kernels by operator: views and reservations of memory launch none.
    """

    def __init__(self, *_: object, **__: object) -> None:
        self.kernels: Counter[str] = Counter()
        self.num_replays = 0
        self._nodes: list[_Node] = []
        self._made: set[int] = set()  # ids of allocations that belong to the graph
        self._own: list[Allocation] = []
        self._outside: dict[int, tuple[str, weakref.ref[Allocation]]] = {}

    def add(
        self, name: str, call: Callable[[], Any], inputs: list[CudaTensor], fresh: list[CudaTensor], mutates: bool
    ) -> None:
        """Record an executed operator."""
        for tensor in inputs:
            if id(tensor.allocation) not in self._made:
                self._outside.setdefault(id(tensor.allocation), (name, weakref.ref(tensor.allocation)))
        for tensor in fresh:
            self._made.add(id(tensor.allocation))
            self._own.append(tensor.allocation)
        self._nodes.append(_Node(name, call, [tensor.inner for tensor in fresh], mutates))
        if (fresh or mutates) and not _reserves(name):
            self.kernels[name] += 1

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global", **_: object) -> None:
        current().begin_capture(self, capture_error_mode)

    def capture_end(self) -> None:
        current().end_capture()

    def pool(self) -> tuple[int, int]:
        return (0, 1)

    def reset(self) -> None:
        self._nodes.clear()

    def replay(self) -> None:
        gpu = current()
        gpu.launches("graph replay")
        if gpu.capture is not None:
            raise gpu.refuse("a graph is replayed during a capture")
        for name, memory in self._outside.values():
            if memory() is None:
                raise gpu.refuse(f"a replay uses memory that was freed after the recording: an input of {name}")
        gpu.log.append(("replay", self))
        self.num_replays += 1
        with torch._C._DisableTorchDispatch(), torch.inference_mode():
            for node in self._nodes:
                if node.fresh or node.mutates:  # else a view
                    outputs = [x for x in tree_flatten(node.call())[0] if isinstance(x, torch.Tensor)]
                    for old, new in zip(node.fresh, outputs if node.fresh else [], strict=False):
                        if old is not new:
                            old.copy_(new)


def _reserves(name: str) -> bool:
    return name.startswith(("aten.empty", "aten.new_empty"))


class graph:  # noqa: N801 (torch's name)
    """Replaces torch.cuda.graph, with its behaviour after a failed capture: the thread stays on the capture's stream."""

    default_capture_stream: Stream | None = None

    def __init__(
        self,
        cuda_graph: RecordedGraph,
        pool: object = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
        **_: object,
    ) -> None:
        self._graph = cuda_graph
        self._context = StreamContext(stream or Stream())
        self._error_mode = capture_error_mode

    def __enter__(self) -> None:
        current().synchronize()
        self._context.__enter__()
        self._graph.capture_begin(capture_error_mode=self._error_mode)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._graph.capture_end()  # raises after a failure, and then the stream is not restored
        self._context.__exit__()
        if error is not None:
            current().graphs.remove(self._graph)
