"""Executes the operators of CudaTensors on the CPU, and refuses what a GPU would refuse."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from inference_server.gpu import reference
from tests.support.rehearsal.fake_tensor import CudaTensor
from tests.support.rehearsal.gpu import SimulatedGpu, current

_WAITS = {
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.masked_select",
    "aten.unique_consecutive",
    "aten._unique2",
    "aten.equal",
    "aten.bincount",
    "aten.repeat_interleave.Tensor",
}
# CPU tensors may be beside CUDA tensors here: copies, and indices, which are copied to the GPU first.
_COPIES = {"aten.copy_", "aten._to_copy", "aten.lift_fresh"}
_INDEXES = {"aten.index", "aten.index_put_", "aten.index_put", "aten._index_put_impl_"}
# FlashAttention 2 as torch calls it: varlen_attn has other parameters in torch 2.11, 2.12 and 2.13. Before 2.14, paged calls
# fail without cu_seq_k, and can leave rows unwritten without num_splits (pytorch#194167).
_FLASH_ATTENTION = {"torch_attn._varlen_attn", "aten._flash_attention_forward"}
_CPU = torch.device("cpu")


class RehearsalMode(TorchDispatchMode):
    """Sends the operators of the calling thread to `run`, so that factories with device="cuda" are seen too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


@contextmanager
def on_this_thread() -> Iterator[None]:
    """Rehearse the calling thread's operators for a block."""
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda") becomes a tensor of the CPU and a copy
    try:
        with RehearsalMode():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Execute one operator, and record it if a graph is captured."""
    flat, spec = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    on_gpu = any(isinstance(x, CudaTensor) for x in tensors)
    target = next((x for x in flat if isinstance(x, torch.device)), None)
    if not on_gpu and (target is None or target.type != "cuda"):
        return _run_on_cpu(func, args, kwargs)
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with RehearsalMode():
            return func.decompose(*args, **kwargs)
    gpu, name = current(), func._schema.name.replace("::", ".")
    if name.startswith("tailrace.") and not gpu.has_triton:
        with torch._C._EnableTorchFunction(), RehearsalMode():
            return getattr(reference, name.removeprefix("tailrace."))(*args, **kwargs)
    gpu.launches(name)
    if on_gpu:
        _check_devices(gpu, name, tensors)
    if name in _FLASH_ATTENTION:
        raise gpu.refuse(f"{name}: its arguments differ from release to release; it needs compute capability 8.0")
    if name in _WAITS or f"{name}.{func._overloadname}" in _WAITS:
        gpu.wait(name.removeprefix("aten."))
    if name.startswith("bitsandbytes.") and _threshold(func, args, kwargs) > 0:
        gpu.wait("bitsandbytes: outliers.any()")  # in its CUDA kernel
    if name in _INDEXES:
        for index in args[1]:
            check_index(gpu, name, index)
    if name == "aten.copy_" and isinstance(args[0], CudaTensor) != isinstance(args[1], CudaTensor):
        return _copy_between(gpu, args[0], args[1], bool(args[2]) if len(args) > 2 else kwargs.get("non_blocking", False))
    if name == "aten._to_copy" and target is not None and on_gpu != (target.type == "cuda"):
        return _to_other_device(gpu, args[0], kwargs)
    inner_args, inner_kwargs = tree_unflatten([_inner(gpu, x) for x in flat], spec)
    inner_kwargs.pop("pin_memory", None)
    if name == "aten._softmax" and inner_args[2]:  # half to float, which CPUs do not have
        func, inner_args = torch.ops.aten.softmax.int, (inner_args[0], inner_args[1], torch.float32)
    call = functools.partial(func, *inner_args, **inner_kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        output = call()
    if target is not None and target.type != "cuda":  # a new tensor of the host, for example empty_like(x, device="cpu")
        return output
    return finished(gpu, name, call, tensors, output, _mutated(func, args, kwargs))


def finished(
    gpu: SimulatedGpu,
    name: str,
    call: Callable[[], Any],
    inputs: list[torch.Tensor],
    output: Any,
    mutated: list[CudaTensor],
) -> Any:
    """Count and record an executed operator. Returns its output as CudaTensors.

    Args:
        gpu: The simulated GPU.
        name: The operator's name.
        call: Executes it again, on the same memory.
        inputs: Its tensors.
        output: What `call` returned: CPU tensors.
        mutated: Inputs that it changed in place.
    """
    gpu.operators[name] += 1
    same = {id(tensor.inner): tensor for tensor in mutated}

    def labelled(value: Any) -> Any:
        return (same[id(value)] if id(value) in same else CudaTensor(value)) if isinstance(value, torch.Tensor) else value

    result = tree_map(labelled, output)
    inputs_memory = {id(tensor.allocation) for tensor in inputs if isinstance(tensor, CudaTensor)}
    fresh = [x for x in tree_flatten(result)[0] if isinstance(x, CudaTensor) and id(x.allocation) not in inputs_memory]
    if fresh:
        gpu.allocates(name)
    if gpu.capture is not None:
        gpu.capture.graph.add(name, call, [x for x in inputs if isinstance(x, CudaTensor)], fresh, bool(mutated))
    return result


def check_index(gpu: SimulatedGpu, name: str, index: Any) -> None:
    """Report the wait that an index tensor causes."""
    if isinstance(index, torch.Tensor):
        if index.dtype in (torch.bool, torch.uint8):
            gpu.wait(f"{name} with a mask")
        elif not isinstance(index, CudaTensor) and index.dim():
            gpu.wait(f"{name} with indices of the CPU")


def _run_on_cpu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Execute an operator without CudaTensors. Memory is pinned in name only."""
    name = func._schema.name
    if name == "aten::is_pinned":
        return current().is_pinned(args[0])
    if name == "aten::_pin_memory":
        return current().pin(args[0].clone())
    is_pinned = kwargs.pop("pin_memory", False)
    output = func(*args, **kwargs)
    return current().pin(output) if is_pinned else output


def _check_devices(gpu: SimulatedGpu, name: str, tensors: list[torch.Tensor]) -> None:
    if name in _COPIES or name in _INDEXES:
        return
    for tensor in tensors:
        if not isinstance(tensor, CudaTensor) and tensor.dim() > 0:
            shape = tuple(tensor.shape)
            raise gpu.refuse(f"{name}: expected all tensors to be on the same device, but found cuda:0 and cpu {shape}")


def _inner(gpu: SimulatedGpu, value: Any) -> Any:
    if isinstance(value, CudaTensor):
        return value.inner
    if isinstance(value, torch.device):
        return _CPU
    if isinstance(value, torch.Tensor) and gpu.capture is not None:
        return value.clone()  # a recorded scalar keeps its value
    return value


def _mutated(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[CudaTensor]:
    mutated = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            mutated += [x for x in tree_flatten(given)[0] if isinstance(x, CudaTensor)]
    return mutated


def _threshold(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return float(given.get("threshold") or 0.0)


def _to_other_device(gpu: SimulatedGpu, source: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Copy a tensor to new memory of the other device. Without waiting, the host's memory is pinned, as torch does it."""
    dtype, non_blocking = options.get("dtype") or source.dtype, bool(options.get("non_blocking"))
    if isinstance(source, CudaTensor):
        copy = torch.empty_like(source.inner, dtype=dtype)
        return _copy_between(gpu, gpu.pin(copy) if non_blocking else copy, source, non_blocking)
    copy = CudaTensor(torch.empty_like(source, dtype=dtype))
    gpu.allocates("aten._to_copy")
    return _copy_between(gpu, copy, source, non_blocking)


def _copy_between(
    gpu: SimulatedGpu, target: torch.Tensor, source: torch.Tensor, non_blocking: bool
) -> torch.Tensor:
    """Copy between host and GPU. An asynchronous copy completes when the host waits for it."""
    to_gpu = isinstance(target, CudaTensor)
    host = source if to_gpu else target
    name = "aten.copy_ to the GPU" if to_gpu else "aten.copy_ to the host"
    if not gpu.is_pinned(host):
        gpu.wait(f"{name}, unpinned")
    elif not non_blocking:
        gpu.wait(f"{name}, blocking")
    gpu.operators[name] += 1
    inner_target = target.inner if isinstance(target, CudaTensor) else target
    inner_source = source.inner if isinstance(source, CudaTensor) else source
    inner_target.copy_(inner_source)
    if gpu.capture is not None:
        call = functools.partial(inner_target.copy_, inner_source)
        gpu.capture.graph.add(name, call, [x for x in (target, source) if isinstance(x, CudaTensor)], [], True)
    elif gpu.is_pinned(host) and non_blocking:
        _delay(gpu, name, host, to_gpu)
    return target


def _delay(gpu: SimulatedGpu, name: str, host: torch.Tensor, to_gpu: bool) -> None:
    """Keep a pinned copy open until the host waits for it.

    A destination on the host has wrong values until then. A source on the host must not change until then.
    """
    values = host.clone()

    def compare() -> None:
        if not torch.equal(host, values):
            gpu.refuse(f"{name}: the pinned source changed before the copy was known to be complete")

    def deliver() -> None:
        host.copy_(values)

    if to_gpu:
        gpu.start_copy(compare)
    else:
        host.fill_(float("nan") if host.is_floating_point() else (host.dtype != torch.bool and -77))
        gpu.start_copy(deliver)
