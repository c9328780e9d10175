"""Replaces methods of tensors that take a device guard before anything is dispatched: torch's CPU build has no CUDA guard."""

from collections.abc import Callable
from typing import Any

import torch

from tests.support.rehearsal.dispatch import RehearsalMode, check_index, finished
from tests.support.rehearsal.fake_tensor import CudaTensor
from tests.support.rehearsal.gpu import SimulatedGpu, current


def _get(tensor: torch.Tensor, index: Any) -> Any:
    gpu = current()
    gpu.launches("aten.index")
    places, is_advanced = _places(gpu, index)
    if not isinstance(tensor, CudaTensor):
        raise gpu.refuse("aten.index: indices on the GPU for a tensor of the CPU")
    inner = tensor.inner

    def call() -> torch.Tensor:
        return inner[places]

    with torch._C._DisableTorchDispatch():
        output = call()
    return finished(gpu, "aten.index" if is_advanced else "aten.slice", call, [tensor], output, [])


def _set(tensor: torch.Tensor, index: Any, value: Any) -> None:
    gpu = current()
    gpu.launches("aten.index_put_")
    places, _ = _places(gpu, index)
    if not isinstance(tensor, CudaTensor):
        raise gpu.refuse("aten.index_put_: a tensor of the GPU for a place in one of the CPU")
    if isinstance(value, torch.Tensor) and not isinstance(value, CudaTensor) and value.dim():
        gpu.wait("aten.index_put_ with values of the CPU")
    inner, new = tensor.inner, value.inner if isinstance(value, CudaTensor) else value

    def call() -> None:
        inner[places] = new

    with torch._C._DisableTorchDispatch():
        call()
    inputs = [tensor, *([value] if isinstance(value, CudaTensor) else [])]
    finished(gpu, "aten.index_put_", call, inputs, None, [tensor])


def _places(gpu: SimulatedGpu, index: Any) -> tuple[tuple[Any, ...], bool]:
    """Return an index for the CPU, and whether it selects by tensors or lists. Reports the waits that it causes."""
    places, is_advanced = [], False
    for item in index if isinstance(index, tuple) else (index,):
        if isinstance(item, torch.Tensor):
            check_index(gpu, "aten.index", item)
            if isinstance(item, CudaTensor) and item.dim() == 0 and item.dtype != torch.bool:
                gpu.wait("aten.index with a number on the GPU")
            is_advanced = is_advanced or item.dim() > 0
        elif isinstance(item, list):
            is_advanced = True
            gpu.wait("aten.index with a list")
        places.append(item.inner if isinstance(item, CudaTensor) else item)
    return tuple(places), is_advanced


def _scalar(name: str, function: Callable[..., Any]) -> Callable[[torch.Tensor], Any]:
    def read(tensor: torch.Tensor) -> Any:
        gpu = current()
        gpu.launches(name)
        gpu.wait(name)
        return function(tensor.inner if isinstance(tensor, CudaTensor) else tensor)

    return read


def _copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    with RehearsalMode():
        copied: torch.Tensor = torch.ops.aten.copy_.default(target, source, non_blocking)
    return copied


def _dispatched(operator: Any) -> Callable[[torch.Tensor], Any]:
    def call(tensor: torch.Tensor) -> Any:
        with RehearsalMode():
            return operator(tensor)

    return call


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_contiguous():
        return tensor
    with RehearsalMode():
        copied: torch.Tensor = torch.ops.aten.clone.default(tensor, memory_format=torch.contiguous_format)
    return copied


def _set_data(tensor: CudaTensor, value: torch.Tensor) -> None:
    if not isinstance(value, CudaTensor) or value.shape != tensor.shape or value.dtype != tensor.dtype:
        raise NotImplementedError("Tensor.data = a tensor of another kind")
    tensor.inner, tensor.allocation = value.inner, value.allocation


def _numpy(tensor: torch.Tensor, **_: object) -> Any:
    raise current().refuse("can't convert cuda:0 device type tensor to numpy")


SPECIAL: dict[Any, Callable[..., Any]] = {
    torch.Tensor.__getitem__: _get,
    torch.Tensor.__setitem__: _set,
    torch.Tensor.copy_: _copy,
    torch.Tensor.contiguous: _contiguous,
    torch.Tensor.nonzero: _dispatched(torch.ops.aten.nonzero.default),
    torch.Tensor.__invert__: _dispatched(torch.ops.aten.bitwise_not.default),
    torch.Tensor.tolist: _scalar("tolist", torch.Tensor.tolist),
    torch.Tensor.item: _scalar("item", torch.Tensor.item),
    torch.Tensor.__float__: _scalar("float", torch.Tensor.__float__),
    torch.Tensor.__int__: _scalar("int", torch.Tensor.__int__),
    torch.Tensor.__bool__: _scalar("bool", torch.Tensor.__bool__),
    torch.Tensor.__index__: _scalar("index", torch.Tensor.__index__),
    torch.Tensor.data.__set__: _set_data,
    torch.Tensor.numpy: _numpy,
}
