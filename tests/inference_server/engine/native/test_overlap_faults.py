"""Failures while a decode step is in flight: they reach the right sequences, and no other sequence is harmed."""

import pytest
import torch

from inference_server.engine.native import device_sampler, shortlist
from inference_server.engine.native.readback import StepBuffers
from inference_server.generation import Completed, Delta, Failed
from tests.inference_server.engine.native.fake_runner import VOCAB_SIZE
from tests.inference_server.engine.native.stepping import Run, both, replies, sampled, wanted


def poison(position):
    """Return a function that spoils the row with this position in every decode pass."""

    def spoil(tokens, logits):
        logits[[row for row, token in enumerate(tokens) if token.position == position]] = float("nan")

    return spoil


def test_logits_that_are_not_finite_fail_their_own_sequence_only():
    requests = [wanted([3 + n] * (1 + 3 * n), max_tokens=12, sampling=sampled(n)) for n in range(3)]

    def prepare(run):
        run.runner.spoil = poison(13)  # the third sequence reaches it with its 7th token, the second with its 10th

    overlapped, waiting, _ = both(requests, prepare)
    assert overlapped == waiting
    assert [last for _, _, last in overlapped[1:]] == [Failed, Failed]
    assert isinstance(overlapped[0][2], Completed)


PENALISED = {"temperature": 3.0, "top_p": 0.95, "frequency_penalty": 0.8, "repetition_penalty": 1.2}


@pytest.mark.parametrize("params", [{"temperature": 3.0, "top_p": 0.95}, {"top_k": 9}, PENALISED], ids=str)
def test_rows_whose_shortlist_is_too_short_are_sampled_again_once(params, monkeypatch):
    monkeypatch.setattr(shortlist, "SHORTLIST", 4)
    monkeypatch.setattr(device_sampler, "SHORTLIST", VOCAB_SIZE)  # no row is known to be long
    again = []
    read = StepBuffers.read
    monkeypatch.setattr(StepBuffers, "read", lambda self: again.append(min(ids := read(self), default=0) < 0) or ids)
    requests = [wanted([3 + n], max_tokens=30, sampling=sampled(n, **params if n % 2 else {})) for n in range(4)]
    overlapped, waiting, _ = both(requests)
    assert overlapped == waiting
    assert 1 <= sum(again) <= 2


@pytest.fixture
def failing_read(monkeypatch):
    """Return a function that makes the read of the `count`th step raise an error."""
    read = StepBuffers.read

    def install(count, error):
        def fail(buffers):
            nonlocal count
            count -= 1
            if count == 0:
                raise error
            return read(buffers)

        monkeypatch.setattr(StepBuffers, "read", fail)

    return install


def test_an_error_of_the_device_fails_the_sequences_of_its_step(failing_read):
    failing_read(5, torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    run = Run(max_running=2)
    seqs = [run.add(wanted([3 + n], sampling=sampled(n))) for n in range(3)]
    run.finish()
    assert [run.reply(seq)[2] for seq in seqs[:2]] == [Failed, Failed]
    assert run.runner.num_probes == 1
    assert run.reply(seqs[2]) == replies([wanted([5], sampling=sampled(2))], overlap=False)[0][0]


@pytest.mark.parametrize("params", [{}, {"presence_penalty": 1.5}], ids=str)
def test_sequences_are_preempted_if_a_step_in_flight_ran_out_of_memory(failing_read, params):
    requests = [wanted([3 + n], sampling=sampled(n, **params)) for n in range(3)]
    expected, _ = replies(requests, overlap=False)
    failing_read(5, torch.AcceleratorError("CUDA error: out of memory"))
    overlapped, run = replies(requests, overlap=True)
    assert overlapped == expected
    assert run.scheduler.num_preemptions == 3


@pytest.mark.parametrize("params", [{}, {"presence_penalty": 1.5}], ids=str)
def test_out_of_memory_at_a_launch_is_retried_with_fewer_sequences(params):
    def prepare(run):
        def spoil(tokens, logits):
            if len(tokens) > 2 and any(token.position > 8 for token in tokens):
                raise torch.OutOfMemoryError("out of memory")

        run.runner.spoil = spoil

    requests = [wanted([3 + n], max_tokens=30, sampling=sampled(n, **params)) for n in range(4)]
    overlapped, waiting, run = both(requests, prepare)
    assert overlapped == waiting
    assert run.scheduler.num_preemptions > 0 and not run.stepper.is_broken


def test_a_failing_launch_loses_no_token_of_the_step_before():
    def fail(tokens, logits):
        if tokens[0].position == 9:
            raise RuntimeError("device trouble")

    run = Run()
    run.runner.spoil = fail
    seq = run.add(wanted(sampling=sampled()))
    run.finish()
    assert type(run.events[seq][-1]) is Failed
    # The pass at position 9 computes the reply's 7th token.
    assert sum(event.num_tokens for event in run.events[seq] if isinstance(event, Delta)) == 7


def test_a_model_that_fails_for_good_is_broken():
    run = Run()
    run.add(wanted(sampling=sampled()))
    run.steps(3)

    def fail(*_):
        raise RuntimeError("device trouble")

    run.runner.spoil = run.runner.probe = fail
    run.steps(1)
    assert run.stepper.is_broken
