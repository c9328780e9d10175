"""Compares mixture-of-experts models in Tailrace with the same models in transformers, on a CPU.

`python -m benchmarks.features.experts [--kind mixtral|qwen-3] [--rounds 3]` makes a random model and describes the machine. For
each precision it prints the memory of the weights, and the tokens per second of decode passes with 1 and 8 sequences.
transformers decodes a static batch in a loop of forward passes, in float32 and bfloat16. It uses its default
implementation of experts, a grouped product. The implementations take turns in every round, and the result is the
median.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedConfig, Qwen3MoeConfig

from benchmarks.machine import describe
from inference_server.attention import paged
from inference_server.cpu.fused_modules import fuse
from inference_server.model.runner import ModelRunner, NextToken, PromptPiece
from inference_server.precision import Precision, activation_dtype, cache_dtype
from inference_server.weights.prepare import memory_bytes

_SIZES = {
    "vocab_size": 8000,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "mixtral": MixtralConfig(**_SIZES, intermediate_size=1024, num_local_experts=8, num_experts_per_tok=2),
    "qwen-3": Qwen3MoeConfig(
        **_SIZES, moe_intermediate_size=256, num_experts=64, num_experts_per_tok=8, norm_topk_prob=True
    ),
}
PROMPT, STEPS = 16, 20
CPU = torch.device("cpu")
Decode = Callable[[int], float]


def model(kind: str, dtype: torch.dtype) -> Any:
    """Return a random model in evaluation mode, always with the same weights."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind]), dtype=dtype).eval()


def of_transformers(kind: str, dtype: torch.dtype) -> tuple[int, Decode]:
    """Return the bytes of transformers' model, and a function that decodes a static batch and returns its tokens/s."""
    reference = model(kind, dtype)

    @torch.inference_mode()
    def decode(num_seqs: int) -> float:
        ids = torch.randint(3, 8000, (num_seqs, PROMPT), generator=torch.Generator().manual_seed(1))
        output = reference(ids, use_cache=True)
        started = time.perf_counter()
        for _ in range(STEPS):
            ids = output.logits[:, -1:].argmax(-1)
            output = reference(ids, past_key_values=output.past_key_values, use_cache=True)
        return num_seqs * STEPS / (time.perf_counter() - started)

    return reference.get_memory_footprint(), decode


def of_this_server(kind: str, precision: Precision) -> tuple[int, Decode]:
    """Return the bytes of the packed model, and a function that decodes a batch and returns its tokens/s."""
    packed = model(kind, activation_dtype(precision, CPU))
    paged.register()
    packed.set_attn_implementation(paged.NAME)
    fuse(packed, precision, batch_invariant=False)
    runner = ModelRunner(packed, num_blocks=64, cache_dtype=cache_dtype(precision))

    def decode(num_seqs: int) -> float:
        ids = torch.randint(3, 8000, (num_seqs, PROMPT), generator=torch.Generator().manual_seed(1)).tolist()
        blocks = [[1 + 2 * row, 2 + 2 * row] for row in range(num_seqs)]
        logits = runner.prefill([PromptPiece(blocks[row], 0, ids[row], wants_logits=True) for row in range(num_seqs)])
        started = time.perf_counter()
        for step in range(STEPS):
            newest = logits.argmax(-1).tolist()
            tokens = [NextToken(blocks[row], PROMPT + step, newest[row]) for row in range(num_seqs)]
            logits = runner.decode(tokens)
        return num_seqs * STEPS / (time.perf_counter() - started)

    return memory_bytes(packed), decode


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features.experts", description=__doc__)
    parser.add_argument("--kind", choices=CONFIGS, default="mixtral")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    print(describe())
    subjects = {
        "transformers, float32": of_transformers(chosen.kind, torch.float32),
        "transformers, bfloat16": of_transformers(chosen.kind, torch.bfloat16),
        "float32": of_this_server(chosen.kind, "float32"),
        "bfloat16": of_this_server(chosen.kind, "bfloat16"),
        "bitsandbytes-int8": of_this_server(chosen.kind, "bitsandbytes-int8"),
        "int4": of_this_server(chosen.kind, "int4"),
    }
    largest = subjects["transformers, float32"][0]
    speeds: dict[tuple[str, int], list[float]] = {}
    for _ in range(chosen.rounds):
        for name, (_, decode) in subjects.items():
            for num_seqs in (1, 8):
                speeds.setdefault((name, num_seqs), []).append(decode(num_seqs))
    print(f"{chosen.kind}: tokens/s of decode passes, median of {chosen.rounds} rounds")
    print(f"{'':<24} {'MB':>6} {'of float32':>11} {'1 sequence':>11} {'8 sequences':>12}")
    for name, (num_bytes, _) in subjects.items():
        one, eight = (statistics.median(speeds[name, num_seqs]) for num_seqs in (1, 8))
        print(f"{name:<24} {num_bytes / 1e6:>6.0f} {num_bytes / largest:>11.2f} {one:>11.1f} {eight:>12.1f}")


if __name__ == "__main__":
    main()
