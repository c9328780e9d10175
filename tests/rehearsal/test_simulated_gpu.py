"""The simulated GPU refuses what a GPU refuses, and its graphs, copies and events behave as CUDA's."""

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress

import pytest
import torch

from tests.support.rehearsal.gpu import Refused, SimulatedGpu
from tests.support.rehearsal.patches import rehearsal

CUDA = torch.device("cuda")


@pytest.fixture
def gpu() -> Iterator[SimulatedGpu]:
    """Run the test on a simulated GPU whose violations it expects."""
    simulated = SimulatedGpu()
    with rehearsal(simulated):
        yield simulated
        simulated.violations.clear()


def record(work: Callable[[], object], **options: object) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **options):
        work()
    return graph


def in_another_thread(work: Callable[[], object]) -> None:
    """Run `work` in a thread. What the simulated GPU refuses is in its violations."""

    def run() -> None:
        with suppress(Refused):
            work()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def test_a_violation_fails_the_rehearsal_even_if_the_error_is_handled() -> None:
    with pytest.raises(AssertionError, match="aten.add.Tensor|aten.add"), rehearsal(SimulatedGpu()):
        try:
            torch.ones(2, device=CUDA) + torch.ones(2)
        except RuntimeError:
            pass


def test_an_operator_refuses_tensors_of_two_devices(gpu: SimulatedGpu) -> None:
    with pytest.raises(Refused, match="same device"):
        torch.ones(2, device=CUDA) @ torch.ones(2)


HOST_WAITS = {
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "float": lambda x: float(x[0]),
    "bool": lambda x: bool(x.sum() > 0),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "list": lambda x: x[[0, 1]],
    "indices of the CPU": lambda x: x[torch.tensor([0, 1])],
    "copy to the host": lambda x: x.cpu(),
    "unpinned copy": lambda x: x.copy_(torch.ones(4)),
    "unpinned copy of numbers": lambda x: torch.tensor([1.0, 2.0], device=CUDA),
    "synchronize": lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("wait", HOST_WAITS.values(), ids=HOST_WAITS.keys())
def test_a_wait_of_the_host_is_logged_and_refused_during_a_capture(
    gpu: SimulatedGpu, wait: Callable[[torch.Tensor], object]
) -> None:
    x = torch.ones(4, device=CUDA)
    gpu.log.clear()
    wait(x)
    assert [kind for kind, _ in gpu.log] == ["wait"]
    with pytest.raises(Refused):
        record(lambda: wait(x))
    assert not gpu.graphs


def test_a_pinned_copy_without_waiting_is_not_a_wait(gpu: SimulatedGpu) -> None:
    x, host = torch.zeros(4, device=CUDA), torch.ones(4).pin_memory()
    gpu.log.clear()
    x.copy_(host, non_blocking=True)
    assert gpu.log == []
    assert x.tolist() == [1.0] * 4


def test_a_replay_computes_again_in_place_from_the_recorded_memory(gpu: SimulatedGpu) -> None:
    x, outputs = torch.tensor([1.0, 2.0], device=CUDA), []
    graph = record(lambda: outputs.append((x * 2 + 1)[:1]))
    x.copy_(torch.tensor([5.0, 6.0]))
    graph.replay()
    assert outputs[0].tolist() == [11.0]


def test_a_replay_is_refused_after_an_input_of_the_recording_was_freed(gpu: SimulatedGpu) -> None:
    x = torch.ones(4, device=CUDA)
    views = [x[:2]]
    graph = record(lambda: views[0] * 2)
    del x
    graph.replay()
    views.clear()
    with pytest.raises(Refused, match="freed"):
        graph.replay()


def test_the_host_reads_a_copy_only_after_it_has_waited_for_an_event(gpu: SimulatedGpu) -> None:
    x, host, event = torch.ones(2, device=CUDA), torch.zeros(2).pin_memory(), torch.cuda.Event()
    host.copy_(x, non_blocking=True)
    event.record()
    assert host.tolist() != [1.0, 1.0]
    event.synchronize()
    assert host.tolist() == [1.0, 1.0]


def test_an_event_before_the_copy_does_not_cover_it(gpu: SimulatedGpu) -> None:
    x, host, event = torch.ones(2, device=CUDA), torch.zeros(2).pin_memory(), torch.cuda.Event()
    event.record()
    host.copy_(x, non_blocking=True)
    event.synchronize()
    assert host.tolist() != [1.0, 1.0]


def test_a_pinned_source_must_not_change_before_its_copy_is_complete(gpu: SimulatedGpu) -> None:
    x, host = torch.zeros(2, device=CUDA), torch.ones(2).pin_memory()
    x.copy_(host, non_blocking=True)
    host.fill_(3.0)
    torch.cuda.synchronize()
    assert "pinned source changed" in gpu.violations[0]


def test_a_thread_stays_on_the_stream_of_a_failed_capture(gpu: SimulatedGpu) -> None:
    x = torch.ones(2, device=CUDA)
    with pytest.raises(Refused):
        record(lambda: x.tolist())
    with pytest.raises(Refused, match="stream of a failed capture"):
        x * 2


def test_a_block_on_a_stream_restores_the_thread_after_a_failed_capture(gpu: SimulatedGpu) -> None:
    x = torch.ones(2, device=CUDA)
    with pytest.raises(Refused), torch.cuda.stream(torch.cuda.Stream()):
        record(lambda: x.tolist())
    assert (x * 2).tolist() == [2.0, 2.0]


INTERFERENCE = {
    "device synchronize": lambda: torch.cuda.synchronize(),
    "begins during another capture": lambda: torch.cuda.CUDAGraph().capture_begin(),
}


@pytest.mark.parametrize(("reason", "interfere"), INTERFERENCE.items(), ids=INTERFERENCE.keys())
def test_another_thread_must_not_synchronize_or_capture_during_a_capture(
    gpu: SimulatedGpu, reason: str, interfere: Callable[[], object]
) -> None:
    with suppress(Refused):
        record(lambda: in_another_thread(interfere), capture_error_mode="thread_local")
    assert reason in gpu.violations[0]


@pytest.mark.parametrize(("mode", "is_refused"), [("global", True), ("thread_local", False)])
def test_another_thread_must_not_allocate_during_a_capture_in_mode_global(
    gpu: SimulatedGpu, mode: str, is_refused: bool
) -> None:
    def work() -> None:
        in_another_thread(lambda: torch.zeros(2, device=CUDA))

    with pytest.raises(Refused) if is_refused else nullcontext():
        record(work, capture_error_mode=mode)
    assert bool(gpu.violations) == is_refused
