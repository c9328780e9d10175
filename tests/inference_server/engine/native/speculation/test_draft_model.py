"""A draft model: its drafts are tokens that it would sample itself, and its failures do not change replies."""

import pytest

from inference_server.engine.native.speculation.draft_model import DraftModel, num_blocks
from inference_server.engine.native.speculation.drafting import Drafting
from tests.inference_server.engine.native.fake_runner import VOCAB_SIZE, FakeRunner
from tests.inference_server.engine.native.speculation.guesses import always_drafting
from tests.inference_server.engine.native.stepping import GREEDY, replies, sampled, wanted

MAX_LEN = 80


class Drafts:
    """Makes a Drafting with a draft model and without drafts from earlier text."""

    def __init__(self, monkeypatch, *, max_seqs=8, vocab_size=VOCAB_SIZE):
        always_drafting(monkeypatch, [])
        self.runner = FakeRunner(num_blocks=num_blocks(max_seqs, MAX_LEN, 4))
        self.model = DraftModel(self.runner, max_seqs=max_seqs, max_len=MAX_LEN, vocab_size=vocab_size)

    def __call__(self, scheduler):
        return Drafting(scheduler, draft_model=self.model)


@pytest.mark.parametrize("sampling", [GREEDY, sampled(), sampled(top_p=0.5), sampled(temperature=3.0)])
def test_drafts_of_the_same_model_are_all_accepted(monkeypatch, sampling):
    requests = [wanted((5, 6, 7 + index), max_tokens=40, sampling=sampling) for index in range(3)]
    plain, _ = replies(requests, overlap=False)
    drafted, run = replies(requests, overlap=False, drafting=Drafts(monkeypatch))
    assert drafted == plain
    assert run.drafting.num_accepted > 30
    ends = sum(token_ids[-1] == 2 for _, token_ids, _ in plain)
    assert run.drafting.num_drafted - run.drafting.num_accepted <= 11 * ends  # tokens after the end of a reply


def test_drafts_of_another_model_change_no_reply(monkeypatch):
    requests = [wanted((5, 6, 7 + index), max_tokens=60, sampling=sampled(index)) for index in range(5)]
    plain, _ = replies(requests, overlap=False, num_blocks=40)
    drafts = Drafts(monkeypatch, max_seqs=3)

    def spoil(tokens, logits):
        for row, token in enumerate(tokens):
            if token.position % 3 == 0:
                logits[row] = logits[row].flip(0)

    drafts.runner.spoil = spoil
    drafted, run = replies(requests, overlap=False, num_blocks=40, drafting=drafts)
    assert drafted == plain
    assert 0 < run.drafting.num_accepted < run.drafting.num_drafted


def test_a_failing_draft_model_is_used_no_more(monkeypatch, caplog):
    request = wanted(max_tokens=40, sampling=sampled())
    plain, _ = replies([request], overlap=False)
    drafts = Drafts(monkeypatch)

    def fail(tokens, logits):
        raise RuntimeError("device trouble")

    drafts.runner.spoil = fail
    drafted, run = replies([request], overlap=False, drafting=drafts)
    assert drafted == plain
    assert run.drafting.num_drafted == 0
    assert [record.message for record in caplog.records] == [
        "the draft model failed: this server continues without its drafts"
    ]


def test_tokens_beyond_the_vocabulary_are_no_drafts(monkeypatch):
    request = wanted(max_tokens=40, sampling=sampled())
    plain, _ = replies([request], overlap=False)
    drafted, run = replies([request], overlap=False, drafting=Drafts(monkeypatch, vocab_size=10))
    assert drafted == plain
    assert run.drafting.num_drafted == run.drafting.num_accepted


def test_the_blocks_of_ended_sequences_serve_others(monkeypatch):
    drafts = Drafts(monkeypatch, max_seqs=1)
    requests = [wanted((5, 6, 7 + index), max_tokens=20, sampling=sampled(index)) for index in range(3)]
    _, run = replies(requests, overlap=False, max_running=1, drafting=drafts)
    assert run.drafting.num_accepted > 30
