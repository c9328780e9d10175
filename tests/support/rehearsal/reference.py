"""Compares greedy replies with transformers' own forward pass."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.support.models.adapters import merge
from tests.support.rehearsal.engines import Reply


class Reference:
    """A model of transformers on the CPU, in float32. Its weights are rounded as the server's are."""

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float16, is_int8: bool = False) -> None:
        quantization = BitsAndBytesConfig(load_in_8bit=True) if is_int8 else None
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", quantization_config=quantization, device_map={"": "cpu"}
        )
        self._model = (model.dequantize() if is_int8 else model).float().eval()

    def merged(self, adapter: Path) -> "Reference":
        """Add a LoRA adapter to the weights. Returns this reference."""
        merge(self._model, adapter)
        return self

    @torch.inference_mode()
    def shortfall(self, prompt_ids: list[int], reply: Reply) -> float:
        """Return how far a reply is from the greedy one.

        It is the largest difference between the largest logit and the logit of the chosen token, over all positions.
        Without rounding it is 0. The logits have a standard deviation of about 2.
        """
        assert reply.error is None, reply.error
        ids = torch.tensor([[*prompt_ids, *reply.token_ids]])
        logits = self._model(ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt_ids) - 1 : -1]
        chosen = logits.gather(-1, torch.tensor(reply.token_ids)[:, None]).squeeze(-1)
        return float((logits.amax(dim=-1) - chosen).max())

    def assert_greedy(self, prompts: list[list[int]], replies: list[Reply], tolerance: float = 0.1) -> None:
        """Assert that every reply is the greedy one, up to ties within `tolerance`, in units of logits."""
        shortfalls = [self.shortfall(*pair) for pair in zip(prompts, replies, strict=True)]
        assert max(shortfalls) <= tolerance, shortfalls
