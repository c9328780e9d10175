"""The cache reserves its memory when it is created, and the system provides it as blocks are written."""

import resource

import torch

from inference_server.attention.kv_cache import KVCache


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_cache_takes_memory_only_where_it_is_written():
    before = peak_bytes()
    cache = KVCache(num_blocks=4096, block_size=32, device=torch.device("cpu"))
    token = torch.ones(1, 4, 64)
    for layer in range(16):
        keys, values = cache.layer(layer, token, token)
        for block in range(0, 4096, 128):
            keys[block] = values[block] = 1.0
    assert cache.num_bytes == 2 * 16 * 4096 * 32 * 4 * 64 * 4
    assert peak_bytes() - before < cache.num_bytes / 16


def test_keys_and_values_of_a_layer_may_have_different_widths():
    cache = KVCache(num_blocks=2, block_size=4, device=torch.device("cpu"))
    keys, values = cache.layer(0, torch.ones(1, 2, 8), torch.ones(1, 2, 6))
    assert (keys.shape, values.shape) == ((2, 4, 2, 8), (2, 4, 2, 6))
