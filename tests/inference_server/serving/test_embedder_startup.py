"""The start of embedding models."""

import pytest
import torch

from inference_server.serving import embedder_startup
from inference_server.serving.catalog import CatalogEntry
from inference_server.serving.embedder_startup import load_embedders
from inference_server.settings.server import Settings
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError
from tests.support.models.tiny_encoders import write_encoder


@pytest.mark.parametrize("is_optional", [False, True])
async def test_a_model_that_does_not_fit_into_the_memory_is_refused_or_left_out(tmp_path, monkeypatch, is_optional):
    monkeypatch.setattr(embedder_startup, "available_memory_bytes", lambda: 1000)
    folder = write_encoder(tmp_path / "large", "bert")
    entry = CatalogEntry(
        name="large", description="", weights=Weights(path=folder), task="embedding", is_optional=is_optional
    )
    loading = load_embedders([entry], Settings(cache_dir=tmp_path), torch.device("cpu"), lambda: None)
    if is_optional:
        assert await loading == {}
    else:
        with pytest.raises(
            ConfigurationError, match=r"^large \(large\) cannot be served: its weights need .* are free"
        ):
            await loading
