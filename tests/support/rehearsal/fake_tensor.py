"""Tensors that report the device cuda:0 and keep their values in a CPU tensor."""

import weakref
from typing import Any

import torch

CUDA = torch.device("cuda", 0)


class Allocation:
    """The life of one piece of GPU memory: all tensors on it share the object, and it dies with the last of them."""


_allocations: "weakref.WeakValueDictionary[int, Allocation]" = weakref.WeakValueDictionary()


class CudaTensor(torch.Tensor):
    """A CPU tensor under a CUDA label.

    Attributes:
        inner: The CPU tensor with the values.
        allocation: The memory's life.
    """

    inner: torch.Tensor
    allocation: Allocation

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "CudaTensor":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CUDA,
            requires_grad=False,
        )
        tensor.inner = inner
        tensor.allocation = _allocation_of(inner)
        return tensor

    def __repr__(self, **_: object) -> str:
        return f"CudaTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from tests.support.rehearsal import indexing

        if (special := indexing.SPECIAL.get(func)) is not None:
            return special(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from tests.support.rehearsal import dispatch

        return dispatch.run(func, args, kwargs or {})


def _allocation_of(inner: torch.Tensor) -> Allocation:
    key = storage_key(inner)
    allocation = _allocations.get(key)
    if allocation is None:
        allocation = _allocations[key] = Allocation()
    return allocation


def storage_key(tensor: torch.Tensor) -> int:
    """Return a number that identifies the memory of a CPU tensor while it is allocated."""
    return tensor.untyped_storage()._cdata


def to_cuda(model: Any) -> Any:
    """Put every parameter and buffer of a transformers model under the CUDA label, bitsandbytes' integers included."""
    moved: dict[int, tuple[torch.Tensor, CudaTensor]] = {}  # by id, so that tied weights stay tied

    def cuda(tensor: torch.Tensor) -> CudaTensor:
        if id(tensor) not in moved:
            moved[id(tensor)] = (tensor, CudaTensor(tensor.detach().as_subclass(torch.Tensor)))
        return moved[id(tensor)][1]

    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in list(store.items()):
                if tensor is not None and not isinstance(tensor, CudaTensor):
                    store[name] = cuda(tensor)
                    if getattr(tensor, "SCB", None) is not None:
                        store[name].CB, store[name].SCB = store[name], cuda(tensor.SCB)
                    elif hasattr(tensor, "SCB"):
                        store[name].CB = store[name].SCB = None
        state = getattr(module, "state", None)
        if getattr(state, "CB", None) is not None:
            state.CB, state.SCB = cuda(state.CB), cuda(state.SCB)
    return model
