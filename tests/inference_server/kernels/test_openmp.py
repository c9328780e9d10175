"""Threads of torch's operations: one for a thread that asks for it, without an effect on the others."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inference_server.engine.native import build as native
from inference_server.kernels.jit.openmp import use_one_thread
from tests.support.engines import collect, entry, hosting, request

# Numbers of rows whose product with these weights MKL rounds differently on two threads (AMD EPYC, Zen 4).
ROWS, INPUTS, OUTPUTS = range(2, 12), 384, 1536


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def on_a_thread(work: Callable[[], object]) -> list[object]:
    """Return the result of work on a thread of its own, in a list."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results


def products() -> list[Tensor]:
    torch.manual_seed(1)
    weights = torch.randn(INPUTS, OUTPUTS)
    return [torch.randn(rows, INPUTS) @ weights for rows in ROWS]


def test_a_thread_that_computes_alone_gets_the_results_of_one_thread():
    def alone() -> tuple[int, list[Tensor]]:
        use_one_thread()
        return torch.get_num_threads(), products()

    ((num_threads, found),) = on_a_thread(alone)
    torch.set_num_threads(1)
    assert num_threads == 1
    assert all(map(torch.equal, found, products()))


def test_other_threads_keep_their_number_of_threads():
    on_a_thread(use_one_thread)
    assert (torch.get_num_threads(), on_a_thread(torch.get_num_threads)) == (2, [2])


class CountingThreads:
    """The builder of engines that records torch's number of threads in each step."""

    def __init__(self) -> None:
        self.load = native.load
        self.seen: set[int] = set()

    async def build(self, spec):
        def sample(logits):
            self.seen.add(torch.get_num_threads())
            return native.sample_tokens(logits)

        return await native.build(spec, sample)


@pytest.mark.parametrize(("precision", "number"), [("float32", 1), ("bitsandbytes-int8", 2)])
async def test_in_deterministic_mode_only_torchs_operations_use_one_thread(
    tiny_model: Callable[[str], Path], precision, number
):
    builder = CountingThreads()
    tiny = entry(tiny_model("llama-2-heads-of-32"), precision=precision)
    async with hosting(tiny, builder=builder, deterministic=True, max_running_seqs=2) as models:
        if models["tiny"].engine.runner.depends_on_threads == (number == 2):
            pytest.skip("this CPU has no compiled kernels")
        await collect(models["tiny"], request([5, 6, 7], max_tokens=2))
    assert builder.seen == {number}
