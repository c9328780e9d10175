"""Creates Tailrace's model runner and engine for a model, without servers and without a tokenizer."""

from collections.abc import Sequence as Items
from typing import Any

import torch

from benchmarks.gpu.models import cache_bytes_per_token
from inference_server.attention.kv_cache import BLOCK_SIZE
from inference_server.engine.admission import CapacityLimits
from inference_server.engine.native.engine import Engine
from inference_server.engine.native.scheduling.step_plan import Policy
from inference_server.model.runner import ModelRunner, NextToken, PromptPiece

MAX_TOKENS = 2048  # tokens of the longest sequence
MAX_SEQS = 64
_CACHE_SHARE = 0.8  # share of the free memory that a KV cache may use


def cache_tokens(model: Any, max_seqs: int = MAX_SEQS, max_tokens: int = MAX_TOKENS) -> int:
    """Return the tokens of a KV cache for `max_seqs` sequences of `max_tokens`, or those that fit the free memory."""
    wanted = max_seqs * max_tokens
    if model.device.type != "cuda":
        return wanted
    free, _ = torch.cuda.mem_get_info(model.device)
    return min(wanted, int(free * _CACHE_SHARE) // cache_bytes_per_token(model.config))


def make_runner(
    model: Any,
    *,
    graphs: bool = True,
    max_seqs: int = MAX_SEQS,
    max_tokens: int = MAX_TOKENS,
    invariant: bool = False,
) -> ModelRunner:
    """Return a runner that has computed one token, with recorded CUDA graphs if `graphs`.

    Args:
        model: A transformers model with Tailrace's attention function. On a GPU, transformers may be unable to run it
            afterwards.
        graphs: True to record CUDA graphs.
        max_seqs: Number of sequences that decode together.
        max_tokens: Tokens of the longest sequence.
        invariant: True makes results independent of the batch.
    """
    runner = ModelRunner(
        model,
        num_blocks=cache_tokens(model, max_seqs, max_tokens) // BLOCK_SIZE,
        max_len=max_tokens,
        max_seqs=max_seqs,
        invariant_rows=max_seqs if invariant else None,
    )
    runner.probe()
    if graphs:
        runner.record_graphs()
    return runner


async def start_engine(runner: ModelRunner, max_seqs: int = MAX_SEQS, invariant: bool = False) -> Engine:
    """Start an engine without a prefix cache."""
    policy = Policy(
        max_running_seqs=max_seqs, prefill_chunk_tokens=512, idle_chunk_tokens=2048, batch_invariant=invariant
    )
    limits = CapacityLimits(slots=max_seqs, waiting_seqs=1000, waiting_tokens=10_000_000)
    return Engine(runner, end_ids=set(), policy=policy, limits=limits, max_unused_blocks=0)


class Sequences:
    """Sequences of given lengths with computed prompts, decoded without an engine.

    Attributes:
        tokens: The next token of each sequence.
    """

    def __init__(self, runner: ModelRunner, lengths: Items[int], vocab_size: int) -> None:
        """Prefill prompts of these lengths. They use the cache's blocks from 1 on; block 0 is the scratch block."""
        size = runner.cache.block_size
        self.tokens: list[NextToken] = []
        first = 1
        for number, length in enumerate(lengths):
            blocks = list(range(first, first + length // size + 1))
            first += len(blocks)
            runner.prefill([PromptPiece(blocks, 0, prompt(number, length, vocab_size), wants_logits=True)])
            self.tokens.append(NextToken(blocks, length, (number * 37) % (vocab_size - 10) + 5))


def prompt(number: int, length: int, vocab_size: int) -> list[int]:
    """Return `length` token ids, which depend on `number`."""
    return [(number * 7919 + place * 31) % (vocab_size - 10) + 5 for place in range(length)]
