"""A linear backend and a prefill attention kernel in Python, so that kernel programs can be tested on every CPU.

They read the same argument blocks as compiled kernels do. They must run on one thread.
"""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from inference_server.attention.torch_attention import AttentionSpec, causal_attention, causal_mask
from inference_server.cpu.linear.kernel_linear import KernelLinear, PackedWeights, layout_name
from inference_server.cpu.linear.torch_backend import TorchBackend
from inference_server.kernels import ops
from inference_server.kernels.jit.kernel import Kernel

_keep: list[object] = []


def kernel(function: Callable[[list[int]], None]) -> Kernel:
    """Return a kernel that calls `function` with the words of its argument block."""

    def call(block: int) -> None:
        function(list((ctypes.c_int64 * 24).from_address(block)))

    callback = ctypes.CFUNCTYPE(None, ctypes.c_int64)(call)
    _keep.append(callback)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    return Kernel(address)


def tensor_at(address: int, dtype: torch.dtype, *shape: int) -> Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(shape)


def _multiply(words: list[int]) -> None:
    weights, _, x, out, bias, rows, width, outputs, _, kernel_data = words[3:13]
    is_gated, is_head = tensor_at(kernel_data, torch.int64, 2).tolist()
    product = (
        tensor_at(x, torch.bfloat16, rows, width).float() @ tensor_at(weights, torch.bfloat16, outputs, width).T.float()
    )
    product = (product + tensor_at(bias, torch.float32, outputs)).bfloat16()
    if is_gated:
        product = ops.reference.silu_mul(product)
    tensor_at(out, torch.float32 if is_head else torch.bfloat16, *product.shape).copy_(product)


_MULTIPLY = kernel(_multiply)


class CallbackLinear(KernelLinear):
    panel_outputs = 16
    dtype = torch.bfloat16

    def __init__(self, packed: PackedWeights) -> None:
        super().__init__(packed)
        self.out_dtype = torch.float32 if packed.kind.is_head else torch.bfloat16
        self._kernel_data = torch.tensor([packed.kind.is_gated, packed.kind.is_head], dtype=torch.int64)

    def plan(self, num_rows: int) -> tuple[Kernel, Tensor]:
        return _MULTIPLY, self._kernel_data

    def workspace_bytes(self, num_rows: int) -> int:
        return 0


class CallbackBackend(TorchBackend):
    """A backend for bfloat16 weights, which are stored as they are."""

    name = "callback"

    def supports(self, weight_format, in_features):
        return weight_format == "bf16"

    def supports_gate(self, num_outputs):
        return num_outputs % 8 == 0

    def pack(self, weight, bias, kind):
        missing = -len(weight) % CallbackLinear.panel_outputs
        padded = torch.cat([weight, weight.new_zeros(missing, weight.shape[1])])
        bias = torch.zeros(len(padded)) if bias is None else torch.cat([bias.float(), torch.zeros(missing)])
        layout = layout_name(self.name, self.layout_version)
        return CallbackLinear(PackedWeights(layout, kind, tuple(weight.shape), padded, None, bias))

    def from_packed(self, packed):
        return CallbackLinear(packed)


def prefill_attention(keys_shape: tuple[int, ...]) -> tuple[Kernel, Tensor]:
    """Return a prefill attention kernel for queries, keys and values in bfloat16, and its kernel data.

    `keys_shape` is (num_blocks, block_size, num_kv_heads, head_dim).
    """

    def attend(words: list[int]) -> None:
        query, keys, values, segments, out, num_heads, num_kv_heads, width, block_size = words[3:12]
        scaling = ctypes.c_double.from_buffer(ctypes.c_int64(words[12])).value
        assert keys_shape[1:] == (block_size, num_kv_heads, width)
        cached = [tensor_at(address, torch.bfloat16, *keys_shape) for address in (keys, values)]
        for index in range(tensor_at(segments, torch.int64, 2)[1]):
            row, length, start, table, _, _ = tensor_at(segments + 32 + 48 * index, torch.int64, 6).tolist()
            end, offset = start + length, row * num_heads * width * 2
            blocks = tensor_at(table, torch.int32, -(-end // block_size))
            key, value = (each[blocks].flatten(0, 1)[:end] for each in cached)
            rows = tensor_at(query + offset, torch.bfloat16, length, num_heads, width)
            spec = AttentionSpec(scaling)
            result = causal_attention(rows, key, value, spec, causal_mask(length, end, spec, rows))
            tensor_at(out + offset, torch.bfloat16, length, num_heads, width).copy_(result)

    return kernel(attend), torch.zeros(1)
