"""The cache's memory: reserved at once, taken from the system as it is written."""

import resource

import torch

from inference_server.kv_cache import KVCache


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_cache_takes_memory_only_where_it_is_written():
    before = peak_bytes()
    cache = KVCache(num_slots=32, max_len=4096, device=torch.device("cpu"))
    token = torch.ones(1, 4, 1, 64)
    for layer in range(16):
        keys, values = cache.layer(layer, token, token)
        for slot in range(32):
            keys[slot, :, :16] = values[slot, :, :16] = 1.0
    assert cache.num_bytes == 2 * 16 * 32 * 4 * 4096 * 64 * 4
    assert peak_bytes() - before < cache.num_bytes / 16


def test_a_cleared_slot_is_zero_and_the_others_are_as_they_were():
    cache = KVCache(num_slots=2, max_len=8, device=torch.device("cpu"))
    keys, _ = cache.layer(0, torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4))
    keys[:, :, :5] = float("nan")
    cache.clear(1, 5)
    assert not keys[1].any()
    assert keys[0, :, :5].isnan().all()
