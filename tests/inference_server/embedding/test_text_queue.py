"""The order of texts in batches."""

from inference_server.embedding.text_queue import TextQueue


def queue(**jobs):
    """Return a queue with a job for each keyword: (account, lengths)."""
    found = TextQueue()
    for name, (account, lengths) in jobs.items():
        found.add(name, account, lengths)
    return found


def test_a_batch_is_filled_up_to_its_tokens():
    texts = queue(a=("x", [4, 4, 4, 4]))
    assert texts.take(8) == [("a", 0), ("a", 1)]
    assert texts.take(11) == [("a", 2), ("a", 3)]
    assert not texts


def test_a_text_longer_than_a_batch_is_a_batch_by_itself():
    texts = queue(a=("x", [50, 1]))
    assert texts.take(10) == [("a", 0)]
    assert texts.take(10) == [("a", 1)]


def test_accounts_take_turns():
    texts = queue(many=("x", [1] * 100), one=("y", [1]))
    assert texts.take(4) == [("many", 0), ("one", 0), ("many", 1), ("many", 2)]


def test_the_requests_of_an_account_keep_their_order():
    texts = queue(first=("x", [1, 1]), second=("x", [1]))
    assert texts.take(10) == [("first", 0), ("first", 1), ("second", 0)]


def test_a_removed_job_leaves_the_others():
    texts = queue(a=("x", [1, 1]), b=("x", [1]), c=("y", [1]))
    assert texts.take(1) == [("a", 0)]
    texts.remove("a")
    texts.remove("c")
    texts.remove("gone")
    assert texts.take(10) == [("b", 0)]
    assert not texts
