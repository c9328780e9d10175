"""Quick reading of GGUF files: the same values as gguf's own reader and functions."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from transformers import modeling_gguf_pytorch_utils
from transformers.modeling_gguf_pytorch_utils import read_field

from inference_server.weights.gguf.quick_conversion import QuickReader, dequantize, quick_conversion


@pytest.fixture
def file(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "any.gguf", "llama")
    writer.add_token_list(["a", "", "ü🙂", "d" * 300])
    writer.add_token_scores([0.5, -1.0, 2.0, 3.0])
    writer.add_array("flags", [True, False])
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_uint32("number", 7)
    writer.add_tensor("output.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "any.gguf"


def test_the_quick_reader_finds_the_same_values(file):
    quick, slow = QuickReader(file), GGUFReader(file)
    assert quick.fields.keys() == slow.fields.keys()
    for name, field in slow.fields.items():
        assert quick.fields[name].types == field.types
        assert quick.fields[name].contents() == field.contents()
        if name != "nested":  # transformers does not read arrays of arrays
            assert read_field(quick, name) == read_field(slow, name)
    (found,), (wanted,) = quick.tensors, slow.tensors
    assert (found.name, found.tensor_type, found.data_offset) == (wanted.name, wanted.tensor_type, wanted.data_offset)
    assert np.array_equal(found.data, wanted.data)


@pytest.mark.parametrize("tensor_type", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q5_0"])
def test_dequantised_weights_have_the_same_bits(tensor_type):
    kind = GGMLQuantizationType[tensor_type]
    weights = np.random.default_rng(0).normal(size=(5, 96)).astype(np.float32)
    weights[0, :32] = 0
    data = gguf.quantize(weights, kind)
    found, wanted = dequantize(data, kind), gguf.dequantize(data, kind)
    assert found.shape == wanted.shape == weights.shape
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))


def test_a_conversion_reads_the_file_once_and_leaves_gguf_as_it_was(file, monkeypatch):
    before = gguf.GGUFReader, gguf.dequantize, gguf.get_tensor_name_map, modeling_gguf_pytorch_utils.tqdm
    with quick_conversion():
        assert gguf.GGUFReader(file) is gguf.GGUFReader(file)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert gguf.dequantize is dequantize
    assert before == (gguf.GGUFReader, gguf.dequantize, gguf.get_tensor_name_map, modeling_gguf_pytorch_utils.tqdm)


def test_transformers_uses_what_is_replaced(file, monkeypatch):
    class Used(Exception):
        pass

    def reader(path):
        raise Used

    monkeypatch.setattr("inference_server.weights.gguf.quick_conversion.QuickReader", reader)
    with quick_conversion(), pytest.raises(Used):
        modeling_gguf_pytorch_utils.load_gguf_checkpoint(file)
    assert {"dequantize", "get_tensor_name_map"} <= _names_imported_from_gguf()


def _names_imported_from_gguf():
    functions = (
        modeling_gguf_pytorch_utils.load_gguf_checkpoint,
        modeling_gguf_pytorch_utils.get_gguf_hf_weights_map,
    )
    return {name for function in functions for name in function.__code__.co_names}
