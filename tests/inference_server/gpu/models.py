"""Runs tiny models through the GPU's forward pass, on CPU tensors with the operators' torch versions."""

import dataclasses
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from inference_server.attention.kv_cache import BLOCK_SIZE, KVCache
from inference_server.attention.step_inputs import DecodeTokens, PromptTokens, Segment
from inference_server.gpu.attention import GpuAttention
from inference_server.gpu.decoder import extract
from inference_server.gpu.forward import GpuForward
from inference_server.gpu.graphs import DecodeGraphs
from inference_server.gpu.inputs import DecodeInputs
from tests.support.kernels.linears import int8_linear

MAX_BLOCKS = 6
MAX_SEQS = 8


def load(folder: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def quantize(model: nn.Module, *, dequantized: bool) -> None:
    """Give all layers but the head int8 weights: as bitsandbytes' modules, or as float32 weights of the same values."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and name != "lm_head":
                quantized = int8_linear(child)
                if dequantized:
                    child.weight.data = quantized.weight.CB * quantized.weight.SCB[:, None] / 127
                else:
                    setattr(parent, name, quantized)


def generate(model: Any, prompt: list[int], num_tokens: int) -> list[int]:
    """Return greedy tokens of transformers' own loop."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens, eos_token_id=None
    )
    return output[0, len(prompt) :].tolist()


class GpuModel:
    """A model's weights in the GPU's forward pass, and sequences of it, each with its own blocks."""

    def __init__(self, model: Any, *, num_layers: int | None = None) -> None:
        """`num_layers`: use only the first layers."""
        self.cache = KVCache(num_blocks=64, block_size=BLOCK_SIZE, device=torch.device("cpu"))
        decoder = extract(model)
        decoder = dataclasses.replace(decoder, layers=decoder.layers[:num_layers])
        self.forward = GpuForward(decoder, self.cache, GpuAttention())
        self.sampled = torch.zeros(MAX_SEQS, dtype=torch.int64)
        self.inputs = DecodeInputs(self.sampled, max_blocks=MAX_BLOCKS, block_size=BLOCK_SIZE)
        self.graphs = DecodeGraphs(
            self.forward.decode, self.inputs, vocab_size=decoder.head.out_features, dtype=self.forward.dtype
        )

    @torch.no_grad()
    def prefill(self, segments: list[Segment], prompts: list[list[int]]) -> Tensor:
        """Compute segments of prompts. Returns the logits of the last token of each."""
        return self.forward.prefill(*flattened(segments, prompts))

    @torch.no_grad()
    def decode(self, token_ids: list[int], positions: list[int], blocks: list[range]) -> Tensor:
        return self.graphs.decode(DecodeTokens(token_ids, positions, blocks))

    @torch.no_grad()
    def mixed(self, tokens: DecodeTokens, segments: list[Segment], prompts: list[list[int]]) -> Tensor:
        count = len(tokens.token_ids)
        self.inputs.write(tokens, count)
        return self.forward.mixed(self.inputs.rows(count), *flattened(segments, prompts))

    def greedy(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """Return the greedy tokens of all prompts, decoded together from the device's own sampled tokens."""
        blocks = [range(1 + MAX_BLOCKS * index, 1 + MAX_BLOCKS * (index + 1)) for index in range(len(prompts))]
        segments = [Segment(own, 0, len(prompt)) for own, prompt in zip(blocks, prompts, strict=True)]
        logits = self.prefill(segments, prompts)
        columns = []
        for step in range(num_tokens):
            self.sampled[: len(prompts)] = logits.argmax(-1)
            columns.append(self.sampled[: len(prompts)].tolist())
            references = [-1 - row for row in range(len(prompts))]
            logits = self.decode(references, [len(prompt) + step for prompt in prompts], blocks)
        return [list(reply) for reply in zip(*columns, strict=True)]


def flattened(segments: list[Segment], prompts: list[list[int]]) -> tuple[PromptTokens, list[int]]:
    """Return the batch of these segments, and the index of the last token of each."""
    ends = itertools.accumulate(len(prompt) for prompt in prompts)
    positions = [place for segment in segments for place in range(segment.start, segment.end)]
    return PromptTokens([token for prompt in prompts for token in prompt], positions, segments), [
        end - 1 for end in ends
    ]
