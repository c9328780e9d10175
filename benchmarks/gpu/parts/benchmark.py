"""Part 4: measures the tokens per second of Tailrace and of transformers with the same weights, and records a bound.

The bound of one stream is the bandwidth of a copy divided by the bytes of the weights, which every step reads once.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.gpu import models, outcome, timing
from benchmarks.gpu.checks import Check, Note, Setup
from benchmarks.gpu.runners import MAX_TOKENS, cache_tokens, prompt
from benchmarks.gpu.subjects import ContinuousBatching, Generate, Prompts, Reply, Subject, Tailrace

Make = Callable[[Setup, Any], Subject]


def _loads(setup: Setup, vocab_size: int) -> dict[str, Prompts]:
    """Return the prompts of each load by name. All prompts of a load have the same length."""
    counts, long = ((1, 4), 100) if setup.is_tiny else ((1, 8, 64), 1500)
    loads = {outcome.streams(count): [prompt(number, 30, vocab_size) for number in range(count)] for count in counts}
    return loads | {"1 long prompt": [prompt(99, long, vocab_size)]}


def _measure(setup: Setup, note: Note, make: Make, *, int8: bool, attention: str, rounds: int) -> None:
    """Record the figures of one engine for every load."""
    model = models.make(setup, int8=int8, attention=attention)
    num_bytes = models.weight_bytes(model)
    note("shapes", setup.path or setup.shapes)
    note("weights_gb", round(num_bytes / 1e9, 3))
    note("bound_tokens_per_s", round(timing.copy_bandwidth(setup) / num_bytes, 1))
    room = cache_tokens(model)
    start = time.perf_counter()
    subject = make(setup, model)
    note("start_s", round(time.perf_counter() - start, 2))  # includes Triton's compilation and the recording of graphs
    try:
        if isinstance(subject, Tailrace):
            note("path", subject.runner.path)
        for load, prompts in _loads(setup, model.config.vocab_size).items():
            if len(prompts) * (len(prompts[0]) + setup.tokens) > room:
                note(load, {"left out": f"the GPU's memory holds keys and values of {room} tokens only"})
                continue
            subject.run(prompts, 4)  # first use of these lengths compiles kernels and allocates workspaces
            note(load, figures([subject.run(prompts, setup.tokens) for _ in range(1 if setup.is_tiny else rounds)]))
    finally:
        subject.close()
    if setup.is_cuda:
        note("peak_memory_gib", round(torch.cuda.max_memory_allocated(setup.device) / 2**30, 2))
        torch.cuda.reset_peak_memory_stats(setup.device)


def figures(rounds: list[list[Reply]]) -> dict[str, float]:
    """Return the medians over several rounds of the same load. `rounds`: the replies of each round.

    Returns:
        tokens_per_s: All tokens of the load, by the time from its start to the last token.
        decode_tokens_per_s: The tokens after each reply's first one, by the time from the earliest first token to the
            last token.
        ttft_ms: The median time to the first token.
        tpot_ms: The median over the replies of the mean time per token after the first.
    """
    whole = [sum(len(one.token_ids) for one in replies) / max(one.last for one in replies) for replies in rounds]
    decode = [_decode_rate(replies) for replies in rounds]
    first = [median(one.first for one in replies) for replies in rounds]
    each = [median((one.last - one.first) / max(1, len(one.token_ids) - 1) for one in replies) for replies in rounds]
    return {
        "tokens_per_s": round(median(whole), 1),
        "decode_tokens_per_s": round(median(decode), 1),
        "ttft_ms": round(median(first) * 1e3, 1),
        "tpot_ms": round(median(each) * 1e3, 3),
    }


def _decode_rate(replies: list[Reply]) -> float:
    duration = max(one.last for one in replies) - min(one.first for one in replies)
    return sum(len(one.token_ids) - 1 for one in replies) / duration if duration > 0 else 0.0


def _check(name: str, seconds: float, make: Make, *, int8: bool, attention: str, rounds: int = 1) -> Check:
    def run(setup: Setup, note: Note) -> None:
        _measure(setup, note, make, int8=int8, attention=attention, rounds=rounds)

    return Check(name, seconds, run)


def _prefill(setup: Setup, note: Note) -> None:
    """Record the prompt tokens per second, and the time until every one of many requests has its first output token."""
    model = models.make(setup)
    count, length = (4, 40) if setup.is_tiny else (16, 512)
    count = min(count, cache_tokens(model) // MAX_TOKENS)
    subject = Tailrace(setup, model)
    try:
        prompts = [prompt(number, length, model.config.vocab_size) for number in range(count)]
        subject.run(prompts, 1)
        replies = subject.run(prompts, 1)
    finally:
        subject.close()
    last = max(reply.last for reply in replies)
    note(
        f"{count} prompts of {length} tokens", {"last_ms": round(last * 1e3, 1), "per_s": round(count * length / last)}
    )


CHECKS = [
    _check(outcome.OURS_16, 75, Tailrace, int8=False, attention=models.TAILRACE, rounds=2),
    _check(outcome.OURS_8, 75, Tailrace, int8=True, attention=models.TAILRACE, rounds=2),
    _check("generate 16-bit", 50, Generate, int8=False, attention="sdpa"),
    _check(outcome.CONTINUOUS, 75, ContinuousBatching, int8=False, attention="sdpa"),
    _check("generate int8 (stock bitsandbytes)", 60, Generate, int8=True, attention="sdpa"),
    Check("tailrace prefill", 40, _prefill),
]
