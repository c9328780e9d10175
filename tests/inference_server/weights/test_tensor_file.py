"""Reading a safetensors file with several threads."""

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from inference_server.weights import tensor_file
from inference_server.weights.tensor_file import reading


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "_CHUNK", 1000)  # several chunks for one tensor
    tensors = {
        "float32": torch.randn(50, 70),
        "bf16": torch.randn(33).bfloat16(),
        "int8": torch.randint(-128, 128, (7, 5), dtype=torch.int8),
        "uint8": torch.arange(200, dtype=torch.uint8),
        "empty": torch.empty(0, 3),
    }
    save_file(tensors, tmp_path / "file.safetensors", {"key": "value"})
    return tmp_path / "file.safetensors", tensors


@pytest.mark.parametrize("mapped", [[], ["float32"]])
def test_tensors_and_metadata_are_those_that_were_written(file, mapped):
    path, tensors = file
    with reading(path, mapped=mapped) as found:
        assert found.metadata == {"key": "value"}
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype
    assert found.tensors["uint8"].data_ptr() % 64 == 0


def test_a_truncated_file_is_reported(file):
    path, _ = file
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SafetensorError), reading(path):
        pass


def test_a_file_that_is_cut_while_it_is_read_is_reported(file, monkeypatch):
    path, _ = file
    header = tensor_file._header(path)
    path_cut = path.with_suffix(".cut")
    path_cut.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="shorter than its header"):
        tensor_file._fill(path_cut, [(header[1], memoryview(bytearray(path.stat().st_size - header[1])))])


def test_a_dtype_that_no_packed_weight_has_is_refused(tmp_path):
    save_file({"a": torch.zeros(2, dtype=torch.float64)}, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match="F64"), reading(tmp_path / "file.safetensors"):
        pass
