"""Loads tiny models without an engine, and computes their logits."""

import torch

from inference_server.weights.loader import load_model

CPU = torch.device("cpu")
PROMPT = torch.tensor([[1, 300, 290, 311, 270, 333, 280, 301]])


def load(weights, tmp_path, precision="float32", attention_name="sdpa", **options):
    """Load the model with an attention that needs no engine."""
    return load_model(weights, precision, device=CPU, cache_dir=tmp_path, attention_name=attention_name, **options)


@torch.inference_mode()
def logits(model):
    return model(PROMPT).logits[0].float()
