"""Engines for tests: hosted models made from a folder, and replies collected from them."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from inference_server.engine.native import build as native
from inference_server.engine.native.engine import Engine
from inference_server.engine.native.sampler import Sample
from inference_server.engine.native.step_rows import Logits, sample_tokens
from inference_server.engine.spec import EngineBuilder, EngineSpec
from inference_server.generation import Completed, Delta, GenerationRequest, SamplingParams, Started
from inference_server.precision import Precision
from inference_server.serving.catalog import CatalogEntry
from inference_server.serving.hosted_model import HostedModel
from inference_server.serving.startup import load_all
from inference_server.settings.server import Settings
from inference_server.weights.prepare import PreparedModel
from inference_server.weights.source import Weights

GREEDY = SamplingParams(seed=1, temperature=0.0, ignore_eos=True)


def entry(
    folder: Path,
    *,
    name: str = "tiny",
    precision: Precision = "float32",
    context_length: int = 2048,
    sequence_length: int = 1800,
    chat_template: str | None = None,
) -> CatalogEntry:
    return CatalogEntry(
        name=name,
        description="for tests",
        weights=Weights(path=folder),
        precision=precision,
        context_length=context_length,
        sequence_length=sequence_length,
        chat_template=chat_template,
        stands_in=False,
    )


@asynccontextmanager
async def hosting(
    *entries: CatalogEntry, builder: EngineBuilder[PreparedModel] = native, **settings: object
) -> AsyncIterator[dict[str, HostedModel]]:
    """Load the entries' models with running engines. Stops them at the end."""
    builders = {"tailrace": lambda: builder}
    models = await load_all(list(entries), Settings(device="cpu", **settings), lambda: None, builders)
    try:
        yield models
    finally:
        for engine in {model.engine for model in models.values()}:
            await engine.stop()


@dataclass
class Collected:
    """A complete reply."""

    text: str = ""
    deltas: list[Delta] = field(default_factory=list)
    started: Started | None = None
    completed: Completed | None = None
    token_ids: list[int] = field(default_factory=list)


def request(prompt_ids: Iterable[int], **options: object) -> GenerationRequest:
    options = {"request_id": "test", "sampling": GREEDY, "max_tokens": 16, **options}
    return GenerationRequest(prompt_ids=list(prompt_ids), **options)


async def collect(model: HostedModel, generation: GenerationRequest) -> Collected:
    collected = Collected()
    async with model.submit(generation) as reply:
        async for event in reply:
            match event:
                case Started():
                    collected.started = event
                case Delta():
                    collected.deltas.append(event)
                    collected.text += event.text
                case Completed():
                    collected.completed = event
    return collected


class Recorder:
    """Records the token ids of each sequence, because streams contain only text."""

    def __init__(self, model: HostedModel) -> None:
        self._token_ids: dict[str, list[int]] = {}
        add = model.engine.scheduler.add

        def record(seq) -> None:
            self._token_ids[seq.request.request_id] = seq.token_ids
            add(seq)

        model.engine.scheduler.add = record

    def completion(self, request_id: str, num_prompt_tokens: int) -> list[int]:
        return self._token_ids[request_id][num_prompt_tokens:]


class LogitsRecorder:
    """Records the exact bits of every row of logits that native engines sample from, by request id.

    It is the builder of the engines that it records: `hosting(…, builder=recorder)`.
    """

    def __init__(self) -> None:
        self.rows: dict[str, list[bytes]] = defaultdict(list)
        self.load = native.load

    async def build(self, spec: EngineSpec[PreparedModel]) -> Engine:
        return await native.build(spec, self._sample)

    def _sample(self, logits: Logits) -> list[Sample]:
        for seq, row in zip(logits.seqs, logits.rows, strict=True):
            self.rows[seq.request.request_id].append(row.numpy().tobytes())
        return sample_tokens(logits)

    def take(self, request_id: str) -> list[bytes]:
        return self.rows.pop(request_id)


async def until(condition, *, seconds: float = 30.0) -> None:
    """Wait for a condition by polling it every few milliseconds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
