"""Which implementation an operator calls: the launcher of its Triton kernel, or torch's operations."""

import sys
from types import ModuleType

import pytest
import torch

from inference_server.gpu import ops, triton_support


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """Let operators on CPU tensors find Triton. Returns the names of the launchers that they call."""
    names: list[str] = []
    module = ModuleType("inference_server.gpu.kernels.launchers")
    for name in ops._SCHEMAS:

        def launcher(first, *_, name=name):
            names.append(name)
            return first.clone()

        setattr(module, name, launcher)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_support.importlib.util, "find_spec", lambda name: name)
    return names


def attention(head_dim: int, value_dim: int, dtype: torch.dtype = torch.float32) -> None:
    query, keys = torch.zeros(2, 4, head_dim), torch.zeros(3, 16, 2, head_dim, dtype=dtype)
    values = torch.zeros(3, 16, 2, value_dim, dtype=dtype)
    table, lengths = torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, dtype=torch.int32)
    ops.paged_decode_attention(query, keys, values, table, lengths, 1.0)


def test_operators_call_the_launchers_of_their_names(launched):
    x = torch.zeros(2, 8)
    ops.rms_norm(x, x[0], 1e-5)
    ops.add_rms_norm(x, x, x[0], 1e-5)
    ops.silu_mul(x)
    ops.int8_linear(x, torch.zeros(4, 8, dtype=torch.int8), torch.ones(4))
    attention(16, 16)
    assert launched == ["rms_norm", "add_rms_norm", "silu_mul", "int8_linear", "paged_decode_attention"]


@pytest.mark.parametrize(("head_dim", "value_dim"), [(16, 8), (264, 264), (20, 20)])
def test_attention_without_a_kernel_is_computed_by_torch(head_dim, value_dim, launched):
    attention(head_dim, value_dim)
    assert launched == []


def test_a_product_of_many_rows_with_int8_weights_is_computed_by_torch(launched):
    codes, scales = torch.ones(4, 8, dtype=torch.int8), torch.ones(4)
    output = ops.int8_linear(torch.ones(ops.MAX_INT8_ROWS + 1, 8), codes, scales)
    assert launched == []
    assert torch.equal(output, torch.full((ops.MAX_INT8_ROWS + 1, 4), 8.0))


@pytest.mark.parametrize(
    ("has_triton", "compiler", "expected"),
    [(True, "/usr/bin/gcc", None), (True, None, "C compiler"), (False, "/usr/bin/gcc", "Triton is not installed")],
)
def test_the_obstacle_to_triton_is_named_with_its_remedy(has_triton, compiler, expected, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(triton_support.importlib.util, "find_spec", lambda name: name if has_triton else None)
    monkeypatch.setattr(triton_support.shutil, "which", lambda name: compiler)
    obstacle = triton_support.obstacle()
    assert (obstacle is None) if expected is None else (expected in obstacle and "install" in obstacle)
