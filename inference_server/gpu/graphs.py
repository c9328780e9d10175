"""Runs decode passes on a GPU as CUDA graphs: recorded at start for several batch sizes, then replayed in each step.

Without graphs, launching the kernels of a small model takes longer than running them. A graph reads and writes fixed
tensors: the inputs (inputs.py) and the logits. A batch between two sizes is padded to the larger one.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from inference_server.attention.step_inputs import DecodeTokens
from inference_server.errors import first_line
from inference_server.gpu.inputs import DecodeInputs, DecodeRows
from inference_server.progress import progress

logger = logging.getLogger(__name__)

# Computes logits (n, vocab_size) from n rows of inputs.
DecodePass = Callable[[DecodeRows], Tensor]

# The models of one process record one after the other: torch allows one recording at a time.
_RECORDING = threading.Lock()


class _NotRecordable(Exception):
    """CUDA cannot record the pass. The message is the reason."""


def batch_sizes(max_rows: int, invariant_rows: int | None) -> list[int]:
    """Return the batch sizes of the graphs, largest first.

    Args:
        max_rows: The largest batch.
        invariant_rows: The only batch size, to which all batches are padded; None if there are several sizes.
    """
    if invariant_rows is not None:
        return [invariant_rows]
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, max_rows, 16)]
    return [max_rows, *sorted((size for size in sizes if size < max_rows), reverse=True)]


class DecodeGraphs:
    """Decode passes of one model: eager passes until `record` has succeeded, then replayed graphs.

    Attributes:
        sizes: The batch sizes of the recorded graphs, largest first; empty if there are none.
    """

    def __init__(
        self,
        decode_pass: DecodePass,
        inputs: DecodeInputs,
        *,
        vocab_size: int,
        dtype: torch.dtype,
        invariant_rows: int | None = None,
    ) -> None:
        """Create the logits' buffer. Nothing is recorded yet.

        Args:
            decode_pass: Computes the logits of a decode pass. It must not wait for the device.
            inputs: The inputs at fixed addresses.
            vocab_size: The width of the logits.
            dtype: The dtype of the logits that `decode_pass` returns.
            invariant_rows: The only batch size, to which all are padded; None to pad each batch to the next recorded
                size.
        """
        self.sizes: list[int] = []
        self._pass = decode_pass
        self._inputs = inputs
        self._invariant_rows = invariant_rows
        self._device = inputs.sampled.device
        # All sizes share one buffer. With a large vocabulary, a separate buffer for each graph would take gigabytes.
        self._logits = torch.zeros((inputs.max_rows, vocab_size), dtype=dtype, device=self._device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def decode(self, tokens: DecodeTokens) -> Tensor:
        """Decode tokens. A sequence may have several: its newest token, then draft tokens at the next positions.

        Args:
            tokens: The tokens; an id -(k + 1) refers to row k of `inputs.sampled`.

        Returns:
            Logits (num_tokens, vocab_size) float32, a new tensor that no later pass changes.
        """
        count = len(tokens.token_ids)
        num_rows = self._num_rows(count)
        self._inputs.write(tokens, num_rows)
        if graph := self._graphs.get(num_rows):
            graph.replay()
        else:
            self._run(num_rows)
        return self._logits[:count].to(torch.float32, copy=True)

    def record(self) -> None:
        """Record the graphs of all batch sizes. If this model's pass cannot be recorded, log why; passes stay eager.

        Raises:
            torch.OutOfMemoryError: The memory ran out.
        """
        sizes = batch_sizes(self._inputs.max_rows, self._invariant_rows)
        label = f"recording CUDA graphs for {_sizes_text(sizes)}"
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        try:
            with _RECORDING, progress(label), _on(stream, self._device):
                pool = torch.cuda.graph_pool_handle()
                for size in sizes:
                    # Eager passes come first: at a first call, libraries choose kernels and allocate workspaces, and
                    # Triton compiles. None of this can be recorded.
                    for _ in range(2):
                        self._run(size)
                    self._graphs[size] = self._recorded(size, pool, stream)
        except _NotRecordable as error:
            self._graphs.clear()
            logger.warning("decoding runs without CUDA graphs: %s", error)
        self.sizes = list(self._graphs)

    def _num_rows(self, count: int) -> int:
        """Return the rows of a pass over `count` tokens: the smallest recorded size that fits, else `count`."""
        if self._invariant_rows is not None:
            return self._invariant_rows
        return min((size for size in self.sizes if size >= count), default=count)

    def _run(self, num_rows: int) -> None:
        """Compute the first rows of the inputs, and write their logits into the buffer."""
        self._logits[:num_rows].copy_(self._pass(self._inputs.rows(num_rows)))

    def _recorded(self, size: int, pool: "torch.cuda._POOL_HANDLE", stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        """Return the graph of one batch size, recorded on `stream` with memory of `pool`."""
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads use the GPU during the recording. The mode "global" would make their calls fail.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._run(size)
        except RuntimeError as error:
            _close_pool(self._device, pool)
            if out_of_memory := _out_of_memory(error):
                raise out_of_memory from None
            raise _NotRecordable(first_line(error)) from error
        return graph


@contextlib.contextmanager
def _on(stream: torch.cuda.Stream, device: torch.device) -> Iterator[None]:
    """Make `stream` the current stream of the `with` block.

    First, `stream` waits for the work of the previous stream. Afterwards the previous stream is current again, and waits
    for the work of `stream`. torch.cuda.graph does not restore the previous stream if a recording fails.
    """
    before = torch.cuda.current_stream(device)
    stream.wait_stream(before)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        before.wait_stream(stream)


def _close_pool(device: torch.device, pool: "torch.cuda._POOL_HANDLE") -> None:
    """Stop allocating from the pool of a failed recording. torch does this only for a recording that it could end."""
    end = getattr(torch.cuda.memory, "_cuda_endAllocateToPool", None)
    with contextlib.suppress(RuntimeError):  # the pool is closed already
        if end is not None:
            end(device.index or 0, pool)


def _out_of_memory(error: BaseException | None) -> torch.OutOfMemoryError | None:
    """Return the out-of-memory error that led to `error`, or None.

    The error of a failed recording can replace the first error.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _sizes_text(sizes: list[int]) -> str:
    """Return a text such as "1 to 64 rows". With draft tokens, a sequence has several rows."""
    smallest, largest = min(sizes), max(sizes)
    return f"{smallest} rows" if smallest == largest else f"{smallest} to {largest} rows"
