"""Runs transformers' continuous batching: requests join the running batch, and tokens arrive one by one."""

import time
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.load.load import Load, Record, Request
from benchmarks.workers.serve import Answer, serve
from benchmarks.workers.transformers_model import END_NEVER, LoadedModel

# 64 sequences of 2,048 tokens, in blocks of 32.
_BLOCK_TOKENS = 32
_NUM_BLOCKS = 64 * 2048 // _BLOCK_TOKENS


class _Batch:
    """Replies of one load while they are generated."""

    def __init__(self, loaded: LoadedModel, manager: Any) -> None:
        self._loaded = loaded
        self._manager = manager
        self._records: dict[str, Record] = {}
        self._lengths: dict[str, int] = {}

    def add(self, request: Request) -> None:
        record = Record(start=time.perf_counter())
        name = self._manager.add_request(
            self._loaded.ids(request), max_new_tokens=request.max_tokens, streaming=True, eos_token_id=END_NEVER
        )
        self._records[name] = record

    def least_events(self) -> int:
        return min(len(record.events) for record in self._records.values())

    def take(self, deadline: float) -> bool:
        """Wait up to a second for one event. Returns True while a reply is unfinished.

        Raises:
            TimeoutError: `deadline` (time.perf_counter) has passed.
            RuntimeError: The thread of the batching has ended.
        """
        if time.perf_counter() > deadline:
            raise TimeoutError("the load did not end in time")
        output = self._manager.get_result(timeout=1.0)
        if output is not None and output.request_id in self._records:
            self._note(output)
        elif output is None and not self._manager.is_running():
            raise RuntimeError("the batch stopped")
        return any(not record.completion_tokens and not record.error for record in self._records.values())

    def _note(self, output: Any) -> None:
        record = self._records[output.request_id]
        count = len(output.generated_tokens)
        if count > self._lengths.get(output.request_id, 0):
            self._lengths[output.request_id] = count
            record.events.append(time.perf_counter())
        if output.is_finished():
            record.error = output.error
            record.prompt_tokens = len(output.prompt_ids)
            record.completion_tokens = count
            record.text = self._loaded.text(output.generated_tokens)

    def records(self) -> list[Record]:
        return list(self._records.values())


def _load_engine(options: dict[str, Any]) -> Answer:
    loaded = LoadedModel(options["folder"], options["precision"])
    manager = loaded.model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=END_NEVER, max_new_tokens=64),
        continuous_batching_config=ContinuousBatchingConfig(block_size=_BLOCK_TOKENS, num_blocks=_NUM_BLOCKS),
    )
    manager.start()

    def answer(load: Load) -> list[Record]:
        batch = _Batch(loaded, manager)
        deadline = time.perf_counter() + load.timeout_s
        for request in load.requests:
            while request.after_events and batch.least_events() < request.after_events and batch.take(deadline):
                pass
            batch.add(request)
            while load.sequential and batch.take(deadline):
                pass
        while batch.take(deadline):
            pass
        return batch.records()

    return answer


if __name__ == "__main__":
    serve(_load_engine)
