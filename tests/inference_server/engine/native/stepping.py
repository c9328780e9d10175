"""The engine without threads, on a model that needs no time: a step runs when the test says so."""

import dataclasses
from types import SimpleNamespace

from inference_server.attention.kv_cache import NUM_SCRATCH_BLOCKS
from inference_server.engine.native.scheduling.block_pool import BlockPool
from inference_server.engine.native.scheduling.scheduler import Scheduler
from inference_server.engine.native.scheduling.step_plan import Policy
from inference_server.engine.native.stepper import Stepper
from inference_server.engine.sequence import Sequence
from inference_server.generation import Completed, Delta, GenerationRequest, SamplingParams
from inference_server.text.detokenizer import reply_text
from tests.inference_server.engine.native.fake_runner import FakeRunner

END = 2
GREEDY = SamplingParams(seed=1, temperature=0.0)


def letters(token_ids):
    return "".join(chr(ord("0") + token_id) for token_id in token_ids)


def wanted(prompt=(5, 6, 7), *, max_tokens=20, sampling=GREEDY, **options):
    return GenerationRequest(
        request_id="test", prompt_ids=list(prompt), sampling=sampling, max_tokens=max_tokens, **options
    )


class Run:
    """An engine without threads: a step runs when the test says so."""

    def __init__(self, *, overlap=True, max_running=4, num_blocks=200, chunk=8, drafting=None, **policy):
        self.runner = FakeRunner(num_blocks=num_blocks, supports_overlap=overlap)
        pool = BlockPool(
            num_blocks=num_blocks, block_size=self.runner.cache.block_size, num_reserved=NUM_SCRATCH_BLOCKS
        )
        policy = Policy(max_running_seqs=max_running, prefill_chunk_tokens=chunk, idle_chunk_tokens=chunk, **policy)
        self.scheduler = Scheduler(pool, policy)
        self.events = {}
        self.drafting = drafting(self.scheduler) if drafting else None
        self.stepper = Stepper(
            self.runner,
            self.scheduler,
            {END},
            lambda seq, event: self.events[seq].append(event),
            drafting=self.drafting,
        )

    def add(self, request, arrived=0.0):
        seq = Sequence(request=request, text=reply_text(letters, request), reply=SimpleNamespace(), arrived=arrived)
        self.events[seq] = []
        self.scheduler.add(seq)
        return seq

    def steps(self, count=1):
        for _ in range(count):
            for _ in self.stepper.run():
                pass

    def finish(self):
        for _ in range(2000):
            if self.scheduler.is_idle:
                break
            self.steps()
        assert self.scheduler.is_idle
        self.stepper.flush()
        assert self.scheduler.num_blocks_in_use == 0

    def reply(self, seq):
        """Return text, tokens, and the last event without its times."""
        *_, last = self.events[seq]
        text = "".join(event.text for event in self.events[seq] if isinstance(event, Delta))
        if isinstance(last, Completed):
            last = dataclasses.replace(last, timings=None)
            last = dataclasses.replace(last, usage=dataclasses.replace(last.usage, cached_tokens=0))
        return text, seq.token_ids, last if isinstance(last, Completed) else type(last)


def replies(requests, *, overlap, arrivals=None, prepare=lambda run: None, **options):
    """Return the replies to requests that arrive before the steps `arrivals`, and the run."""
    run = Run(overlap=overlap, **options)
    prepare(run)
    arrivals = arrivals or [0] * len(requests)
    seqs = [None] * len(requests)
    for step in range(max(arrivals) + 1):
        for index, request in enumerate(requests):
            if arrivals[index] == step:
                seqs[index] = run.add(request)
        run.steps()
    run.finish()
    return [run.reply(seq) for seq in seqs], run


def sampled(seed=1, **params):
    return SamplingParams(seed=seed, **{"temperature": 1.0, "ignore_eos": True, **params})


def both(requests, prepare=lambda run: None, **options):
    """Return the replies with and without overlap, and the run with it. `prepare` changes a run before it starts."""
    overlapped, run = replies(requests, overlap=True, prepare=prepare, **options)
    waiting, _ = replies(requests, overlap=False, prepare=prepare, **options)
    return overlapped, waiting, run
