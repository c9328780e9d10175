"""Sizing the native engine: its KV cache and the prompt tokens of its steps."""

from types import SimpleNamespace

import pytest
import torch

from inference_server.engine.native.build import _num_blocks, _scheduler_policy
from inference_server.settings.server import Settings
from tailrace_shared.config_errors import ConfigurationError


def num_blocks(*, cache_tokens: int | None = None, **settings: int) -> int:
    """Return the blocks of a cache for sequences of 100 tokens, with 4 slots and blocks of 32 tokens."""
    spec = SimpleNamespace(max_len=100, settings=Settings(max_running_seqs=4, **settings), cache_tokens=cache_tokens)
    return _num_blocks(spec, 32)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, 16),
        ({"cache_tokens": 320}, 10),
        ({"cache_tokens": 10_000}, 16),
        ({"kv_cache_tokens": 256}, 8),
        ({"cache_tokens": 320, "kv_cache_tokens": 256}, 8),
    ],
)
def test_the_cache_has_full_slots_unless_memory_or_the_setting_limits_it(sizes, expected):
    assert num_blocks(**sizes) == expected


@pytest.mark.parametrize(
    ("sizes", "cause"),
    [
        ({"kv_cache_tokens": 127}, "TAILRACE_KV_CACHE_TOKENS=127 is"),
        ({"cache_tokens": 96}, "the free memory is"),
    ],
)
def test_a_cache_below_one_longest_sequence_is_refused(sizes, cause):
    with pytest.raises(ConfigurationError, match=f"^{cause} too small for a sequence of 100 tokens"):
        num_blocks(**sizes)


@pytest.mark.parametrize(("device", "chunks"), [("cpu", (64, 512)), ("cuda", (512, 2048))])
def test_steps_have_more_prompt_tokens_on_a_gpu(device, chunks):
    policy = _scheduler_policy(Settings(), torch.device(device))
    assert (policy.prefill_chunk_tokens, policy.idle_chunk_tokens) == chunks
