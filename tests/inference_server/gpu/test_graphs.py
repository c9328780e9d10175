"""Recording of decode passes: batch sizes, failures and their clean-up. CUDA is replaced by objects that do nothing."""

import contextlib
import logging
import threading

import pytest
import torch

from inference_server.attention.step_inputs import DecodeTokens
from inference_server.gpu import graphs
from inference_server.gpu.graphs import DecodeGraphs, batch_sizes
from inference_server.gpu.inputs import DecodeInputs

VOCAB_SIZE = 5


@pytest.mark.parametrize(
    ("max_rows", "invariant_rows", "sizes"),
    [
        (1, None, [1]),
        (20, None, [20, 16, 8, 4, 2, 1]),
        (64, None, [64, 56, 48, 40, 32, 24, 16, 8, 4, 2, 1]),
        (100, None, [100, 96, 80, 64, 56, 48, 40, 32, 24, 16, 8, 4, 2, 1]),
        (64, 32, [32]),
    ],
)
def test_graphs_have_these_batch_sizes_largest_first(max_rows, invariant_rows, sizes):
    assert batch_sizes(max_rows, invariant_rows) == sizes


class Cuda:
    """Replaces torch.cuda: records what is current, and how often graphs were replayed."""

    def __init__(self) -> None:
        self.stream = "default"
        self.captured: list[str] = []
        self.closed: list[object] = []
        self.modes: list[str] = []
        self.error: Exception | None = None
        self.body_error: Exception | None = None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        cuda = self

        class Stream(str):
            def wait_stream(self, other):
                pass

        class Graph:
            def replay(self):
                cuda.captured.append("replay")

        @contextlib.contextmanager
        def on(stream):
            before, cuda.stream = cuda.stream, stream
            try:
                yield
            finally:
                cuda.stream = before

        @contextlib.contextmanager
        def capture(graph, *, pool, stream, capture_error_mode):
            assert graphs._RECORDING.locked()
            cuda.modes.append(capture_error_mode)
            cuda.stream = stream
            try:
                yield
            finally:
                if cuda.error is not None:
                    raise cuda.error  # the stream is not restored
                cuda.stream = stream

        patch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "graph", capture)
        patch.setattr(torch.cuda, "stream", on)
        patch.setattr(torch.cuda, "current_stream", lambda device: Stream(cuda.stream))
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        patch.setattr(torch.cuda.memory, "_cuda_endAllocateToPool", lambda index, pool: cuda.closed.append(pool))


@pytest.fixture
def cuda(monkeypatch) -> Cuda:
    fake = Cuda()
    fake.install(monkeypatch)
    return fake


def decode_graphs(decode_pass, *, max_rows=4, dtype=torch.float16, invariant_rows=None) -> DecodeGraphs:
    inputs = DecodeInputs(torch.zeros(max_rows, dtype=torch.int64), max_blocks=2, block_size=4)
    return DecodeGraphs(decode_pass, inputs, vocab_size=VOCAB_SIZE, dtype=dtype, invariant_rows=invariant_rows)


def one_hot(rows):
    """Returns logits whose largest is at the token's id."""
    return torch.nn.functional.one_hot(rows.token_ids, VOCAB_SIZE).half()


def tokens(*ids: int) -> DecodeTokens:
    return DecodeTokens(list(ids), [0] * len(ids), [[n + 1] for n in range(len(ids))])


def test_passes_are_eager_until_graphs_are_recorded_and_replayed_afterwards(cuda):
    model = decode_graphs(one_hot)
    assert model.decode(tokens(3, 1, 2)).argmax(-1).tolist() == [3, 1, 2]
    assert cuda.captured == []
    model.record()
    assert model.sizes == [4, 2, 1]
    assert set(cuda.modes) == {"thread_local"}
    assert model.decode(tokens(1)).shape == (1, VOCAB_SIZE)
    assert cuda.captured == ["replay"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_logits_are_float32_and_independent_of_other_passes(dtype):
    model = decode_graphs(lambda rows: one_hot(rows).to(dtype), dtype=dtype)
    first = model.decode(tokens(3, 1))
    second = model.decode(tokens(2, 4))
    assert first.dtype is torch.float32
    assert first.argmax(-1).tolist() == [3, 1]
    second.fill_(9)
    assert model.decode(tokens(1)).argmax(-1).tolist() == [1]


def test_under_batch_invariance_all_passes_have_one_size(cuda):
    sizes = []
    model = decode_graphs(lambda rows: sizes.append(len(rows.lengths)) or one_hot(rows), invariant_rows=3)
    model.decode(tokens(1))
    model.record()
    assert set(sizes) == {3}
    assert model.sizes == [3]


def test_a_pass_that_cannot_be_recorded_stays_eager_and_the_stream_is_restored(cuda, caplog):
    caplog.set_level(logging.WARNING)
    cuda.error = RuntimeError("operation not permitted\nwhen stream is capturing")
    model = decode_graphs(one_hot)
    model.record()
    assert model.sizes == []
    assert "decoding runs without CUDA graphs: operation not permitted" in caplog.text
    assert (cuda.stream, cuda.closed) == ("default", ["pool"])
    assert not graphs._RECORDING.locked()
    assert model.decode(tokens(3, 1, 2)).argmax(-1).tolist() == [3, 1, 2]


def test_memory_that_runs_out_during_a_recording_is_reported_as_such(cuda):
    def fails(rows):
        if cuda.modes:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return one_hot(rows)

    cuda.error = RuntimeError("operation failed due to a previous error during capture")
    with pytest.raises(torch.OutOfMemoryError):
        decode_graphs(fails).record()
    assert cuda.stream == "default"
    assert not graphs._RECORDING.locked()


def test_an_error_before_the_recording_is_raised(cuda):
    def fails(rows):
        raise RuntimeError("illegal memory access")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        decode_graphs(fails).record()


def test_two_models_record_one_after_the_other(cuda):
    running, most = [], []

    def decode_pass(rows):
        running.append(1)
        most.append(len(running))
        result = one_hot(rows)
        running.pop()
        return result

    threads = [threading.Thread(target=decode_graphs(decode_pass).record) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert max(most) == 1
