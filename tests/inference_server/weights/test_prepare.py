"""Preparing a model for a CPU."""

import pytest
import torch

from inference_server.precision import cpu_multiplies_bfloat16
from inference_server.settings.server import Settings
from inference_server.weights.prepare import prepare
from inference_server.weights.source import Weights


@pytest.mark.skipif(not cpu_multiplies_bfloat16(), reason="this CPU would not use bfloat16")
def test_the_memory_of_bfloat16_weights_is_two_bytes_a_weight(tiny_model, tmp_path):
    source = Weights(path=tiny_model("llama-2"))
    cpu, settings = torch.device("cpu"), Settings(cache_dir=tmp_path)
    wide = prepare(source, "float32", cpu, settings).num_bytes
    narrow = prepare(source, "bfloat16", cpu, settings).num_bytes
    assert narrow == pytest.approx(wide / 2, rel=0.2)
