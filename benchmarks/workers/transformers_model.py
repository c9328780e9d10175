"""Loads the model as transformers itself does, and encodes prompts for it."""

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from benchmarks.load.load import Request
from inference_server.weights.loader import silence_libraries

END_NEVER = -1


class LoadedModel:
    """The model in `precision`: "bfloat16" or "bitsandbytes-int8" (threshold 0.0, float32 activations as in Tailrace)."""

    def __init__(self, folder: str, precision: str) -> None:
        silence_libraries()
        transformers.logging.set_verbosity_error()
        is_int8 = precision == "bitsandbytes-int8"
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32 if is_int8 else torch.bfloat16,
            quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0) if is_int8 else None,
            device_map={"": "cpu"},
        ).eval()
        self.model.generation_config.eos_token_id = None

    def ids(self, request: Request) -> list[int]:
        if request.messages is None:
            return request.prompt_ids
        encoded = self.tokenizer.apply_chat_template(request.messages, add_generation_prompt=True, return_dict=True)
        ids: list[int] = encoded["input_ids"]
        return ids

    def text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text
