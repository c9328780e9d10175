"""Sends each scenario's requests to a running peer and computes its figures.

A scenario has a set of figures for each of its cases, such as `short-8`: 8 streams with short prompts.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import neighbours
from benchmarks.load.load import Load, Outcome, Request
from benchmarks.load.workload import LONG_TOKENS, SHORT_TOKENS, Workload
from benchmarks.peers.base import Running
from benchmarks.processes import MemoryWatch, cpu_seconds
from benchmarks.report.statistics import Figures, arrival, burst, percentile, step_ms, summary
from benchmarks.sizes import Size

# JSON Schema whose documents are longer than any reply, and contain most kinds of values that a grammar constrains.
_SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 500,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "kind": {"enum": ["city", "river", "mountain"]},
            "height": {"type": "integer", "minimum": 0, "maximum": 9000},
            "is_old": {"type": "boolean"},
        },
        "required": ["name", "kind", "height", "is_old"],
        "additionalProperties": False,
    },
}

# Time from the last request until the servers have queued it.
_SETTLING_SECONDS = 2.0

Cases = Iterator[tuple[str, Callable[[], Figures]]]


class Scenarios:
    """The scenarios of a round on one peer: each public method except `warm_up` yields a scenario's cases.

    Each case has its own prompts. They are the same for every peer of the round and occur in no other case or round.
    """

    def __init__(self, running: Running, model_folder: Path, round_number: int, size: Size) -> None:
        self._running = running
        self._model_folder = model_folder
        self._round_number = round_number
        self._size = size
        self._workload = self._new_workload("warm-up")

    def _new_workload(self, case: str) -> Workload:
        return Workload(self._model_folder, f"{case} {self._round_number}")

    def warm_up(self) -> float:
        """Run each kind of request once. Returns the TTFT of the very first request, in seconds."""
        first = self._run([self._request(SHORT_TOKENS, 8)])
        self._run([self._request(SHORT_TOKENS, 4) for _ in range(min(8, max(self._size.streams)))])
        self._run([self._request(LONG_TOKENS, 4)])
        return first.records[0].ttft_s

    def short(self) -> Cases:
        for streams in self._size.streams:
            yield self._case(f"short-{streams}", self._streams, streams, SHORT_TOKENS, self._size.short_reply)

    def long(self) -> Cases:
        for streams in self._size.long_streams:
            yield self._case(f"long-{streams}", self._streams, streams, LONG_TOKENS, self._size.long_reply)

    def burst(self) -> Cases:
        for prompts in self._size.burst_prompts:
            yield self._case(f"burst-{prompts}", self._burst, prompts)

    def neighbours(self) -> Cases:
        for streams in self._size.neighbour_streams:
            for kind in neighbours.KINDS:
                yield self._case(f"neighbours-{kind}-{streams}", self._beside_busy, kind, streams)

    def pair(self) -> Cases:
        for streams in self._size.neighbour_streams:
            yield self._case(f"pair-{streams}", self._pair, streams)

    def turns(self) -> Cases:
        yield self._case("turns", self._turns)

    def arrival(self) -> Cases:
        yield self._case("arrival", self._arrival)

    def constraint(self) -> Cases:
        for streams in self._size.constraint_streams:
            yield self._case(f"constraint-{streams}", self._constrained, streams)

    def waiting(self) -> Cases:
        yield self._case("waiting", self._waiting)

    def share(self) -> Cases:
        for client in self._running.clients:
            yield self._case(f"share-{client}-1", self._one_by_one, client)
            for streams in self._size.streams[1:]:
                yield self._case(f"share-{client}-{streams}", self._parallel, client, streams)

    def instant(self) -> Cases:
        for client in self._running.clients:
            yield self._case(f"instant-{client}-1", self._one_by_one, client)
        for kind in ("unpaced", "paced"):
            yield self._case(f"instant-{kind}-64", self._through_bridge, kind)

    def _case(self, name: str, measure: Callable[..., Figures], *arguments: Any) -> tuple[str, Callable[[], Figures]]:
        def run() -> Figures:
            self._workload = self._new_workload(name)
            return measure(*arguments)

        return name, run

    def _request(self, num_tokens: int, max_tokens: int, after_events: int = 0) -> Request:
        text, ids = self._workload.prompt(num_tokens)
        return Request(text=text, prompt_ids=ids, max_tokens=max_tokens, after_events=after_events)

    def _run(self, requests: list[Request], client: str | None = None, *, sequential: bool = False) -> Outcome:
        load = Load(requests=requests, timeout_s=self._size.timeout_s, sequential=sequential)
        return self._running.run(load, client)

    def _measured(self, requests: list[Request], client: str | None = None) -> Figures:
        """Return the load's summary, with the mean number of prompt tokens if the peer reports it.

        Also contains the CPU seconds per 1,000 tokens: by process, of all processes, and of the client.
        """
        children = self._running.children
        before = {role: cpu_seconds(child.pid) for role, child in children.items()}
        outcome = self._run(requests, client)
        spent = {role: cpu_seconds(child.pid) - before[role] for role, child in children.items()}
        figures = summary(outcome.records)
        thousands = figures["tokens"] / 1e3
        figures["cpu_s_per_1000_tokens"] = sum(spent.values()) / thousands
        figures |= {f"cpu_{role}_s_per_1000_tokens": seconds / thousands for role, seconds in spent.items()}
        figures["cpu_client_s_per_1000_tokens"] = outcome.client_cpu_s / thousands
        counted = [record.prompt_tokens for record in outcome.records if record.prompt_tokens is not None]
        if counted:
            figures["prompt_tokens"] = sum(counted) / len(counted)
        return figures

    def _streams(self, streams: int, prompt_tokens: int, reply_tokens: int) -> Figures:
        return self._measured([self._request(prompt_tokens, reply_tokens) for _ in range(streams)])

    def _burst(self, prompts: int) -> Figures:
        """Measure the TTFT of short prompts that arrive together, several times, one burst after the other."""
        size = self._size
        bursts = []
        for _ in range(size.burst_repeats):
            bursts.append(self._run([self._request(SHORT_TOKENS, size.burst_reply) for _ in range(prompts)]).records)
        return burst(bursts)

    def _neighbour_load(self, streams: int) -> Load:
        requests = [self._request(SHORT_TOKENS, self._size.neighbour_reply) for _ in range(streams)]
        return Load(requests=requests, timeout_s=self._size.timeout_s)

    def _beside_busy(self, kind: str, streams: int) -> Figures:
        """Compare the throughput alone and beside processes that keep every core busy."""
        alone = self._running.run(self._neighbour_load(streams))
        with neighbours.busy(kind):
            beside = self._running.run(self._neighbour_load(streams))
        return neighbours.compared(alone, [beside])

    def _pair(self, streams: int) -> Figures:
        """Compare the throughput of one engine alone with that of two engines on the same cores, both under load."""
        first, second = self._running.clients
        warm_up = Load(
            requests=[self._request(SHORT_TOKENS, 8) for _ in range(streams)], timeout_s=self._size.timeout_s
        )
        neighbours.together(self._running, {first: warm_up, second: warm_up})
        self._running.pause(second)
        alone = self._running.run(self._neighbour_load(streams), first)
        self._running.resume()
        loads = {client: self._neighbour_load(streams) for client in (first, second)}
        return neighbours.compared(alone, neighbours.together(self._running, loads))

    def _turns(self) -> Figures:
        """Measure the TTFT of two turns of a conversation. The second request repeats the long question and reply."""
        first_question, _ = self._workload.prompt(LONG_TOKENS)
        second_question, _ = self._workload.prompt(SHORT_TOKENS)
        messages = [{"role": "user", "content": first_question}]
        reply_tokens = self._size.turn_reply
        first = self._run([Request(messages=messages, max_tokens=reply_tokens)]).records[0]
        messages = [
            *messages,
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": second_question},
        ]
        second = self._run([Request(messages=messages, max_tokens=reply_tokens)]).records[0]
        return {
            "first_ttft_ms": first.ttft_s * 1e3,
            "second_ttft_ms": second.ttft_s * 1e3,
            "second_to_first": second.ttft_s / first.ttft_s,
        }

    def _arrival(self) -> Figures:
        size = self._size
        streams = [self._request(SHORT_TOKENS, size.arrival_reply) for _ in range(size.arrival_streams)]
        late = self._request(LONG_TOKENS, 8, after_events=size.arrival_reply // 4)
        records = self._run([*streams, late]).records
        return arrival(records[:-1], records[-1])

    def _constrained(self, streams: int) -> Figures:
        """Return a step's time without and with a schema at the same number of streams, and the cost per token."""
        steps = []
        for schema in (None, _SCHEMA):
            requests = [
                replace(self._request(SHORT_TOKENS, self._size.short_reply), schema=schema) for _ in range(streams)
            ]
            steps.append(step_ms(self._run(requests).records))
        free, held = steps
        return {
            "free_step_ms": free,
            "step_ms": held,
            "steps_ratio": held / free,
            "cost_us_per_token": (held - free) / streams * 1e3,
        }

    def _waiting(self) -> Figures:
        """Return the memory of each process for a request that waits for the only slot, in KiB."""
        size = self._size
        # These requests fill the KV cache first, so that the memory of its blocks is not counted for waiting requests.
        self._run([self._request(LONG_TOKENS, 1) for _ in range(4)])
        late = [self._request(SHORT_TOKENS, 1) for _ in range(size.waiting_requests)]
        late[0] = replace(late[0], after_events=20)
        watch = MemoryWatch(self._running.pids())
        with watch.watching():
            running, *waited = self._run([self._request(SHORT_TOKENS, size.running_reply), *late]).records
        settled = min(running.events[-1], max(record.start for record in waited) + _SETTLING_SECONDS)
        before, after = watch.mib_before(waited[0].start), watch.mib_before(settled)
        return {f"{role}_kib_per_request": (after[role] - before[role]) * 1024 / len(waited) for role in after}

    def _one_by_one(self, client: str) -> Figures:
        """Return the median TTFT of single requests, one after the other."""
        requests = [self._request(SHORT_TOKENS, 8) for _ in range(self._size.share_requests)]
        records = self._run(requests, client, sequential=True).records
        return {"ttft_p50_ms": percentile([record.ttft_s * 1e3 for record in records], 50)}

    def _parallel(self, client: str, streams: int) -> Figures:
        requests = [self._request(SHORT_TOKENS, self._size.short_reply) for _ in range(streams)]
        return self._measured(requests, client)

    def _through_bridge(self, kind: str) -> Figures:
        """Run 64 streams on instant_server.py. Adds the tokens per CPU second of the bridge's process."""
        tokens = self._size.instant_tokens if kind == "unpaced" else max(1, self._size.instant_tokens // 8)
        figures = self._measured([Request(text=f"{kind} {number}", max_tokens=tokens) for number in range(64)], "rest")
        figures["tokens_per_bridge_cpu_s"] = 1e3 / figures["cpu_bridge_s_per_1000_tokens"]
        return figures
