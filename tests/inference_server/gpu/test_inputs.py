"""The inputs of passes, as the device receives them."""

import pytest
import torch

from inference_server.attention.kv_cache import KVCache
from inference_server.attention.step_inputs import DecodeTokens, Segment, decode_inputs, prefill_inputs
from inference_server.gpu.inputs import DecodeInputs, upload_prompts

SIZE = 4


def inputs(max_rows: int = 3) -> DecodeInputs:
    sampled = torch.tensor([50, 51, 52][:max_rows])
    return DecodeInputs(sampled, max_blocks=4, block_size=SIZE)


def test_rows_have_the_table_lengths_and_cache_rows_of_a_batch_on_the_cpu():
    buffer = inputs()
    tokens = DecodeTokens([8, 9], [6, 0], [[3, 5], [2, 7]])  # one block more than the second sequence uses
    buffer.write(tokens, 3)
    rows = buffer.rows(3)
    table, lengths, cache_rows = decode_inputs(SIZE, tokens.block_ids, tokens.positions, 3, 4)
    assert torch.equal(rows.lengths, lengths)
    assert torch.equal(rows.rows.long(), cache_rows)
    used = torch.arange(4) * SIZE < lengths[:, None]
    assert torch.equal(rows.table[used], table[used])
    assert rows.token_ids.tolist() == [8, 9, 0]
    assert rows.positions.tolist() == [6, 0, 0]


def test_a_negative_token_id_is_a_sampled_token_at_the_time_of_the_pass():
    buffer = inputs()
    buffer.write(DecodeTokens([-3, 7, -1], [1, 1, 1], [[1], [2], [3]]), 3)
    buffer.sampled.copy_(torch.tensor([10, 11, 12]))
    assert buffer.rows(3).token_ids.tolist() == [12, 7, 10]


def test_a_row_whose_blocks_change_gets_the_new_ones_in_each_staging_buffer():
    buffer = inputs(1)
    blocks = [4, 5]
    for expected in ([4, 5], [4, 5], [6, 5], [6, 5], [6, 7], [6, 7]):
        blocks[:] = expected  # the same list object, as the scheduler's
        buffer.write(DecodeTokens([1], [5], [blocks]), 1)
        assert buffer.rows(1).table[0, :2].tolist() == expected


def test_a_batch_larger_than_the_buffer_is_refused():
    with pytest.raises(ValueError, match="at most 2 rows"):
        inputs(2).write(DecodeTokens([1, 1, 1], [0, 0, 0], [[1], [2], [3]]), 3)


def test_prompts_have_the_tables_and_cache_rows_of_a_batch_on_the_cpu():
    cache = KVCache(num_blocks=20, block_size=SIZE, device=torch.device("cpu"))
    segments = [Segment([3, 1, 9], 0, 5), Segment([7, 2, 8], 6, 4), Segment([4], 3, 1)]
    tables, rows = prefill_inputs(cache, segments)
    prompts = upload_prompts(segments, block_size=SIZE, device=cache.device, token_ids=list(range(10)), wanted=[4, 9])
    assert torch.equal(prompts.rows.long(), rows)
    for row, table in zip(prompts.table, tables, strict=True):
        assert torch.equal(row[: len(table)], table)
    assert prompts.token_ids.tolist() == list(range(10))
    assert prompts.positions.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 3]
    assert prompts.wanted.tolist() == [4, 9]
    assert prompts.starts.tolist() == [0, 5, 9, 10]
    assert prompts.lengths.tolist() == [5, 10, 4]
    assert prompts.longest == 5
