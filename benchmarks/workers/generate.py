"""Runs transformers' `generate`: all requests of a load as one static batch, which no request can join later.

The requests of a sequential load run one by one.
"""

import time
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.load.load import Load, Record, Request
from benchmarks.workers.serve import Answer, serve
from benchmarks.workers.transformers_model import LoadedModel


class _Clock(StoppingCriteria):  # type: ignore[misc]
    """A stopping criterion that records the time after each step and never stops the generation."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def _batch(loaded: LoadedModel, requests: list[Request]) -> list[Record]:
    start = time.perf_counter()
    prompts = torch.tensor(
        [loaded.ids(request) for request in requests]
    )  # shape (requests, prompt tokens); all prompts have the same length
    clock = _Clock()
    with torch.inference_mode():
        tokens = loaded.model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=requests[0].max_tokens,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
    replies = tokens[:, prompts.shape[1] :].tolist()
    return [
        Record(
            start=start,
            events=list(clock.times),
            completion_tokens=len(reply),
            prompt_tokens=prompts.shape[1],
            text=loaded.text(reply),
        )
        for reply in replies
    ]


def _load_engine(options: dict[str, Any]) -> Answer:
    loaded = LoadedModel(options["folder"], options["precision"])

    def answer(load: Load) -> list[Record]:
        if load.sequential:
            return [record for request in load.requests for record in _batch(loaded, [request])]
        return _batch(loaded, load.requests)

    return answer


if __name__ == "__main__":
    serve(_load_engine)
