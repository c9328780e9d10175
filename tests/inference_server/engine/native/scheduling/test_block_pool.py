"""Blocks of the KV cache: allocated, shared, cached for later prompts, and evicted, least recently used first."""

import pytest

from inference_server.attention.kv_cache import SCRATCH_BLOCK
from inference_server.engine.native.scheduling.block_pool import BlockPool
from inference_server.engine.prefix_keys import BlockKeys


def pool(num_blocks=8, block_size=4, **options):
    return BlockPool(num_blocks=num_blocks, block_size=block_size, **options)


def registered(blocks: BlockPool, *names: str) -> list[int]:
    """Register unused blocks under these names. Returns them."""
    taken = blocks.allocate(len(names))
    for block, name in zip(taken, names, strict=True):
        blocks.register(block, name.encode())
    for block in taken:
        blocks.release([block])
    return taken


def test_all_blocks_except_the_scratch_block_are_available_once():
    blocks = pool(num_blocks=5)
    taken = blocks.allocate(5)
    assert sorted(taken) == [1, 2, 3, 4, 5]
    assert SCRATCH_BLOCK not in taken
    assert blocks.allocate(1) is None


def test_allocating_too_many_blocks_changes_nothing():
    blocks = pool(num_blocks=3)
    blocks.allocate(2)
    assert blocks.allocate(2) is None
    assert blocks.num_available == 1


@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_a_partial_block_counts_as_a_whole_one(tokens, count):
    assert pool(block_size=4).blocks_for(tokens) == count


def test_used_memory_is_allocated_before_fresh_memory():
    blocks = pool()
    first = blocks.allocate(2)
    blocks.release(first)
    assert sorted(blocks.allocate(2)) == sorted(first)


def test_a_registered_block_is_found_after_its_release():
    blocks = pool()
    (block,) = registered(blocks, "a")
    assert blocks.match([b"a", b"b"]) == [block]


def test_a_match_ends_at_the_first_missing_key():
    blocks = pool()
    first, _ = registered(blocks, "a", "c")
    assert blocks.match([b"a", b"b", b"c"]) == [first]


def test_a_block_in_use_is_not_evicted():
    blocks = pool(num_blocks=2)
    shared, _ = registered(blocks, "a", "b")
    blocks.share([shared])
    assert blocks.allocate(2) is None
    assert blocks.allocate(1) != [shared]
    assert blocks.match([b"a"]) == [shared]


def test_the_least_recently_used_block_is_evicted_first():
    blocks = pool(num_blocks=2)
    first, second = registered(blocks, "a", "b")
    blocks.share([first])
    blocks.release([first])
    assert blocks.allocate(1) == [second]
    assert blocks.match([b"a"]) == [first]
    assert blocks.match([b"b"]) == []


def test_a_sequences_end_is_evicted_before_its_beginning():
    blocks = pool(num_blocks=3)
    taken = blocks.allocate(3)
    for index, block in enumerate(taken):
        blocks.register(block, bytes([index]))
    blocks.release(taken)
    blocks.allocate(1)
    assert blocks.match([b"\0", b"\1", b"\2"]) == taken[:2]


def test_no_more_unused_blocks_are_kept_than_allowed():
    blocks = pool(num_blocks=8, max_unused_blocks=1)
    _, second = registered(blocks, "a", "b")
    assert blocks.match([b"a"]) == []
    assert blocks.match([b"b"]) == [second]
    assert blocks.num_available == 8


def test_nothing_is_cached_if_the_cache_is_off():
    blocks = pool(max_unused_blocks=0)
    registered(blocks, "a")
    assert blocks.match([b"a"]) == []


def test_the_first_of_two_blocks_with_the_same_tokens_is_kept():
    blocks = pool()
    first, second = blocks.allocate(2)
    blocks.register(first, b"a")
    blocks.register(second, b"a")
    blocks.release([first])
    blocks.release([second])
    assert blocks.match([b"a"]) == [first]
    assert blocks.num_available == 8


def test_a_forgotten_block_is_not_found_and_is_available_again():
    blocks = pool(num_blocks=1)
    (block,) = registered(blocks, "a")
    blocks.forget([block])
    assert blocks.match([b"a"]) == []
    assert blocks.allocate(1) == [block]


def test_a_key_depends_on_every_token_before_it():
    one = BlockKeys(2).get([1, 2, 3, 4], 2)
    assert BlockKeys(2).get([1, 2, 3, 4, 9], 2) == one
    other = BlockKeys(2).get([7, 2, 3, 4], 2)
    assert one[0] != other[0] and one[1] != other[1]


def test_keys_of_different_scopes_differ():
    assert BlockKeys(2, "a").get([1, 2], 1) != BlockKeys(2, "b").get([1, 2], 1)


def test_keys_follow_a_growing_sequence():
    keys, tokens = BlockKeys(2), [1, 2, 3]
    first = keys.get(tokens, 1)
    tokens += [4]
    assert keys.get(tokens, 2)[:1] == first
    assert keys.get(tokens, 2) == BlockKeys(2).get(tokens, 2)
