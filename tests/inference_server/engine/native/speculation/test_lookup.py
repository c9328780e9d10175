"""Draft tokens from earlier text: the tokens that followed the last occurrence of the newest tokens."""

from inference_server.engine.native.speculation.lookup import PromptLookup


def test_the_tokens_after_the_last_occurrence_are_found():
    assert PromptLookup().find([1, 2, 3, 9, 1, 2, 4, 5, 1, 2], 2) == (2, [4, 5])


def test_a_longer_run_goes_before_a_later_one():
    assert PromptLookup().find([6, 7, 1, 2, 3, 9, 8, 1, 2, 4, 4, 6, 7, 1, 2], 2) == (1, [3, 9])


def test_a_draft_ends_with_the_sequence():
    assert PromptLookup().find([1, 2, 1, 2], 8) == (2, [1, 2])


def test_new_tokens_have_no_draft():
    lookup = PromptLookup()
    assert lookup.find([1, 2, 3, 4], 8) == (0, [])
    assert lookup.find([1], 8) == (0, [])


def test_a_growing_sequence_is_searched_like_a_whole_one():
    tokens = [(place * place + place // 7) % 5 for place in range(80)]
    growing = PromptLookup()
    for end in [1, 2, 3, 10, 11, 12, 13, 40, 41, 80]:
        assert growing.find(tokens[:end], 6) == PromptLookup().find(tokens[:end], 6)
