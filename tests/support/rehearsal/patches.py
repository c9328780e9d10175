"""Connects torch.cuda to a simulated GPU for a block, and every thread that is started in it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from inference_server.gpu import triton_support
from tests.support.rehearsal.dispatch import on_this_thread
from tests.support.rehearsal.fake_tensor import CUDA, CudaTensor, to_cuda
from tests.support.rehearsal.gpu import Event, SimulatedGpu, Stream, StreamContext, current, in_use
from tests.support.rehearsal.recording import RecordedGraph, graph

FREE_BYTES = 2**26


@contextmanager
def rehearsal(gpu: SimulatedGpu) -> Iterator[SimulatedGpu]:
    """Run a block on `gpu`.

    Raises:
        AssertionError: The block broke a rule of the GPU, even if the server handled the error.
    """
    with pytest.MonkeyPatch.context() as patch, in_use(gpu):
        torch._C._ensureCUDADeviceGuardSet()
        _patch_cuda(patch, gpu)
        _patch_memory(patch)
        _patch_threads(patch)
        _patch_loading(patch)
        reason = None if gpu.has_triton else "Triton is not installed (pip install triton)"
        patch.setattr(triton_support, "obstacle", lambda: reason)
        triton_support.has_triton.cache_clear()
        try:
            with on_this_thread():
                yield gpu
        finally:
            triton_support.has_triton.cache_clear()
    assert not gpu.violations, "\n".join(gpu.violations)


def _patch_cuda(patch: pytest.MonkeyPatch, gpu: SimulatedGpu) -> None:
    major, minor = gpu.capability
    properties = SimpleNamespace(
        name="Simulated GPU", major=major, minor=minor, total_memory=2 * FREE_BYTES, multi_processor_count=8
    )

    def set_stream(stream: Stream) -> None:
        gpu.stream = stream

    replaced: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda *_: properties.name,
        "get_device_capability": lambda *_: gpu.capability,
        "get_device_properties": lambda *_: properties,
        "is_bf16_supported": lambda *_, **__: major >= 8,
        "mem_get_info": lambda *_: (FREE_BYTES, 2 * FREE_BYTES),
        "memory_allocated": lambda *_: 0,
        "memory_reserved": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "memory_stats": lambda *_: {},
        "reset_peak_memory_stats": lambda *_: None,
        "empty_cache": lambda: None,
        "synchronize": gpu.synchronize,
        "Stream": lambda *_, **__: Stream(),
        "Event": Event,
        "CUDAGraph": RecordedGraph,
        "graph": graph,
        "graph_pool_handle": lambda: (0, 1),
        "stream": StreamContext,
        "current_stream": lambda *_: gpu.stream,
        "default_stream": lambda *_: gpu.default_stream,
        "set_stream": set_stream,
        "is_current_stream_capturing": lambda: gpu.capture is not None,
    }
    for name, value in replaced.items():
        patch.setattr(torch.cuda, name, value)


def _patch_memory(patch: pytest.MonkeyPatch) -> None:
    def pin(tensor: torch.Tensor, *_: object) -> torch.Tensor:
        if isinstance(tensor, CudaTensor):
            raise current().refuse("cannot pin a tensor of the GPU")
        return tensor if current().is_pinned(tensor) else current().pin(tensor.clone())

    torch.utils._device._device_constructors()  # torch keeps the list, which must not contain the replacement
    make = torch.tensor

    def make_on_first_gpu(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        # Without an index, torch's C++ code calls the driver for it.
        device = CUDA if device is not None and torch.device(device).type == "cuda" else device
        return make(data, device=device, **options)

    patch.setattr(torch, "tensor", make_on_first_gpu)
    patch.setattr(torch.Tensor, "pin_memory", pin)
    patch.setattr(torch.Tensor, "is_pinned", lambda tensor, *_: current().is_pinned(tensor))


def _patch_threads(patch: pytest.MonkeyPatch) -> None:
    run = threading.Thread.run

    def run_in_mode(thread: threading.Thread) -> None:
        with on_this_thread():
            run(thread)

    patch.setattr(threading.Thread, "run", run_in_mode)


def _patch_loading(patch: pytest.MonkeyPatch) -> None:
    """Let transformers load models to the CPU, then put them under the CUDA label."""
    lock = threading.Lock()  # transformers changes torch's default dtype while it loads
    load = transformers.AutoModelForCausalLM.from_pretrained

    def load_to_cuda(*args: Any, **kwargs: Any) -> Any:
        with lock, pytest.MonkeyPatch.context() as inner, torch.utils._python_dispatch._disable_current_modes():
            inner.setattr(torch.cuda, "is_available", lambda: False)
            loaded = load(*args, **{**kwargs, "device_map": {"": "cpu"}})
        model, *rest = loaded if isinstance(loaded, tuple) else (loaded,)
        return (to_cuda(model), *rest) if rest else to_cuda(model)

    patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load_to_cuda)
