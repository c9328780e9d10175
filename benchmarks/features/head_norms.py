"""Compares two ways to decode on a CPU with Qwen 3's architecture: one kernel program, and module by module.

`python -m benchmarks.features.head_norms [PRECISION …]` makes a random model with the shape of Qwen3-0.6B. Module by
module, its attention is that of transformers, which Tailrace used before head norms had a kernel. Both ways take turns,
step by step, so that the machine's load is the same for both.
"""

import sys
import time
from statistics import median
from typing import Any

import torch

from inference_server.attention.paged import NAME, register
from inference_server.cpu import fused_modules
from inference_server.model.runner import ModelRunner, NextToken, PromptPiece
from inference_server.precision import Precision, activation_dtype, cache_dtype
from inference_server.weights.replaced import replaced

NUM_STEPS = 40
PROMPT_TOKENS = 64
BLOCKS = 4  # blocks of a sequence
STREAMS = (1, 8)
PRECISIONS: tuple[Precision, ...] = ("bfloat16", "bitsandbytes-int8", "int4")


def random_model(precision: Precision) -> Any:
    """Return a transformers model with the shape of Qwen3-0.6B and random weights."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    dtype = activation_dtype(precision, torch.device("cpu"))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME, dtype=dtype)
    model = model.to_empty(device="cpu")
    values = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.view(-1).copy_(values.repeat(-(-parameter.numel() // len(values)))[: parameter.numel()])
    rotary = model.model.rotary_emb
    rotary.inv_freq.copy_(rotary.compute_default_rope_parameters(config)[0])
    model.tie_weights()
    return model


def runner(precision: Precision, *, has_program: bool) -> ModelRunner:
    """Return a runner of a random model. Without `has_program`, its attention is not fused, so it has no program."""
    model = random_model(precision)
    without = fused_modules._ATTENTIONS - {"Qwen3Attention"}
    with replaced(fused_modules, "_ATTENTIONS", fused_modules._ATTENTIONS if has_program else without):
        fused_modules.fuse(model, precision, batch_invariant=False)
    made = ModelRunner(model, num_blocks=max(STREAMS) * BLOCKS, cache_dtype=cache_dtype(precision))
    made.probe()
    return made


def measure(precision: Precision) -> None:
    """Print the tokens per second of both ways, for each number of streams."""
    ways = {"program": runner(precision, has_program=True), "modules": runner(precision, has_program=False)}
    for count in STREAMS:
        blocks = [range(1 + BLOCKS * row, 1 + BLOCKS * (row + 1)) for row in range(count)]
        prompts = [
            PromptPiece(each, 0, [(7 * row + k) % 1000 for k in range(PROMPT_TOKENS)], True)
            for row, each in enumerate(blocks)
        ]
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for each in ways.values():
            each.prefill(prompts)
        for step in range(NUM_STEPS):
            tokens = [NextToken(each, PROMPT_TOKENS + step, 5 + step) for each in blocks]
            for name, each in ways.items():
                start = time.perf_counter()
                each.decode(tokens)
                seconds[name].append(time.perf_counter() - start)
        rates = {name: count / median(times) for name, times in seconds.items()}
        print(
            f"{precision}, {count} streams: {rates['program']:.1f} tokens/s as one program, {rates['modules']:.1f} by modules, "
            f"{rates['program'] / rates['modules']:.2f} times",
            flush=True,
        )


if __name__ == "__main__":
    register()
    for wanted in sys.argv[1:] or PRECISIONS:
        measure(wanted)  # type: ignore[arg-type]
