"""Catalog entries with engine = "vllm", without vLLM: its arguments, and the engine with a scripted client."""

import asyncio
from types import SimpleNamespace

import pytest

from inference_server.engine.admission import CapacityLimits
from inference_server.engine.vllm.engine import VllmEngine
from inference_server.engine.vllm.engine_args import check_names, engine_arguments
from inference_server.engine.vllm.sampling_params import (
    check_sampling,
    grammar_arguments,
    sampling_arguments,
    token_logprob,
)
from inference_server.engine.vllm.step_stats import StepStats
from inference_server.errors import GenerationFailed, InvalidField
from inference_server.generation import (
    Completed,
    Delta,
    FinishReason,
    GenerationRequest,
    Grammar,
    LogitBias,
    SamplingParams,
    Started,
)
from inference_server.serving.catalog import read_catalog
from inference_server.serving.startup import load_all
from inference_server.settings.server import Settings
from tailrace_shared.config_errors import ConfigurationError
from tests.support.engines import entry

END = 2


def catalog(folder, lines):
    path = folder / "catalog.toml"
    path.write_text(
        '[[models]]\nname = "m"\nsource = { hub = "a/b" }\nprecision = "float16"\n'
        f"context_length = 10\nsequence_length = 10\n{lines}\n"
    )
    return path


def test_a_catalog_names_the_engine_and_its_arguments(tmp_path):
    [found] = read_catalog(catalog(tmp_path, 'engine = "vllm"\n[models.vllm]\ntensor_parallel_size = 4'))
    assert (found.engine, dict(found.vllm)) == ("vllm", {"tensor_parallel_size": 4})


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('engine = "vlm"', "'tailrace' or 'vllm'"),
        ("[models.vllm]\nseed = 1", 'is for a model with engine = "vllm"'),
    ],
)
def test_a_catalog_with_another_engine_is_refused(tmp_path, lines, said):
    with pytest.raises(ConfigurationError, match=said):
        read_catalog(catalog(tmp_path, lines))


async def test_without_vllm_the_error_names_the_extra(tiny_model):
    model = entry(tiny_model("llama-2"))
    model = type(model)(**{name: getattr(model, name) for name in model.__slots__} | {"engine": "vllm"})
    with pytest.raises(ConfigurationError, match=r"tiny.*'\.\[vllm\]'"):
        await load_all([model], Settings(device="cpu"), lambda: None)


def test_arguments_follow_from_the_entry_and_the_settings(tmp_path):
    settings = Settings(max_running_seqs=5, prefix_cache="off")
    arguments = engine_arguments(tmp_path, "bfloat16", 300, {"tensor_parallel_size": 2}, settings)
    assert arguments["model"] == arguments["tokenizer"] == str(tmp_path)
    assert (arguments["dtype"], arguments["max_model_len"], arguments["max_num_seqs"]) == ("bfloat16", 300, 5)
    assert (arguments["tensor_parallel_size"], arguments["enable_prefix_caching"]) == (2, False)


@pytest.mark.parametrize(
    ("precision", "extra", "settings", "said"),
    [
        ("bitsandbytes-int8", {}, {}, "does not support precision"),
        ("int4", {}, {}, "does not support precision"),
        ("float16", {"dtype": "half"}, {}, "decided by `precision`"),
        ("float16", {"trust_remote_code": True}, {}, "no code of a model"),
        ("float16", {}, {"batch_invariant": True}, "TAILRACE_BATCH_INVARIANT"),
    ],
)
def test_settings_that_vllm_lacks_are_refused_by_name(tmp_path, precision, extra, settings, said):
    with pytest.raises(ConfigurationError, match=said):
        engine_arguments(tmp_path, precision, 300, extra, Settings(**settings))


def test_an_unknown_vllm_argument_is_named_with_a_suggestion():
    with pytest.raises(ConfigurationError, match="did you mean tensor_parallel_size"):
        check_names(["tensor_parallel"], {"tensor_parallel_size", "seed"})


def request(account="", seed=1, **fields):
    sampling = SamplingParams(seed=seed, **fields.pop("sampling", {}))
    return GenerationRequest(
        request_id="r", prompt_ids=[5, 6], sampling=sampling, **{"max_tokens": 4, **fields}, account=account
    )


def test_sampling_becomes_vllms_parameters():
    sampling = {"temperature": 1e-6, "top_k": None, "repetition_penalty": 1.5, "logprobs": 0}
    arguments = sampling_arguments(request(sampling=sampling), {END, 9})
    assert (arguments["temperature"], arguments["top_k"], arguments["repetition_penalty"]) == (0.0, 0, 1.5)
    assert (arguments["stop_token_ids"], arguments["logprobs"], arguments["max_tokens"]) == ([END, 9], 0, 4)
    assert sampling_arguments(request(sampling={"ignore_eos": True}), {END})["stop_token_ids"] == []
    assert (arguments["min_p"], arguments["logit_bias"]) == (0.0, None)
    sampling = {"min_p": 0.25, "logit_bias": LogitBias.of({9: 1.5, 4: -100.0})}
    arguments = sampling_arguments(request(sampling=sampling), {END})
    assert (arguments["min_p"], arguments["logit_bias"]) == (0.25, {4: -1e9, 9: 1.5})


def test_a_temperature_that_vllm_does_not_support_is_refused():
    check_sampling(SamplingParams(seed=1, temperature=2.0))
    with pytest.raises(InvalidField, match=r"sampling\.temperature must be at most 2"):
        check_sampling(SamplingParams(seed=1, temperature=2.1))


def test_a_grammar_becomes_vllms_parameters():
    assert grammar_arguments(Grammar("lark", "start: /a/"))["grammar"].endswith("start: /a/")
    assert '"type": "object"' in grammar_arguments(Grammar("json_schema", '{"type": "object"}'))["json"]


def test_log_probabilities_are_ranked_without_forbidden_tokens():
    found = {
        7: SimpleNamespace(logprob=-3.0, rank=4),
        1: SimpleNamespace(logprob=-0.5, rank=1),
        3: SimpleNamespace(logprob=float("-inf"), rank=2),
    }
    reported = token_logprob(7, found, 2)
    assert (reported.token.token_id, reported.token.logprob) == (7, -3.0)
    assert [candidate.token_id for candidate in reported.top] == [1]


class Letters:
    """A TextStream in which each token is a letter."""

    stop_string = None
    num_reasoning_tokens = 0

    def push(self, token_id):
        return chr(ord("a") + token_id)

    def finish(self):
        return ""


class Script:
    """A fake VllmClient: after `go` is set, each request gets the tokens 0, 1, 2… and ends."""

    vocab_size, num_blocks, end_ids = 26, 10, frozenset({25})

    def __init__(self):
        self.steps, self.is_dead = StepStats(), False
        self.go, self.started, self.closed = asyncio.Event(), [], []

    async def generate(self, request):
        self.started.append(request.account)
        try:
            yield self.output([0])
            await self.go.wait()
            for token_id in (1, 2, 25):
                yield self.output([token_id])
        finally:
            self.closed.append(request.account)

    def output(self, token_ids):
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=token_ids, logprobs=None)], num_cached_tokens=1)

    def shut_down(self, seconds):
        self.is_dead = True


@pytest.fixture
async def script():
    return Script()


@pytest.fixture
async def engine(script):
    engine = VllmEngine(script, limits=CapacityLimits(slots=2, waiting_seqs=8, waiting_tokens=100))
    yield engine
    await engine.stop()


async def events(reply):
    async with reply:
        return [event async for event in reply]


async def test_tokens_become_text_until_an_end_token(engine, script):
    script.go.set()
    started, *deltas, completed = await events(engine.submit(request(max_tokens=9), Letters()))
    assert isinstance(started, Started) and all(isinstance(delta, Delta) for delta in deltas)
    assert "".join(delta.text for delta in deltas) == "abc"
    assert isinstance(completed, Completed) and completed.finish_reason is FinishReason.STOP
    assert (completed.usage.completion_tokens, completed.usage.cached_tokens) == (4, 1)


async def test_slots_go_to_accounts_in_turn_and_vllm_has_no_queue(engine, script):
    replies = [engine.submit(request(account), Letters()) for account in ("a", "a", "a", "b")]
    await asyncio.sleep(0.01)
    assert (script.started, engine.num_running, engine.num_waiting) == (["a", "a"], 2, 2)
    script.go.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*map(events, replies))
    assert script.started == ["a", "a", "b", "a"]
    assert engine.num_running == engine.num_waiting == engine.num_in_flight == 0


async def test_batch_requests_get_few_slots_after_interactive_requests(script):
    limits = CapacityLimits(slots=2, waiting_seqs=8, waiting_tokens=100, batch_slots=1)
    engine = VllmEngine(script, limits=limits)
    replies = [engine.submit(request("batch", is_batch=True), Letters()) for _ in range(3)]
    replies += [engine.submit(request("interactive"), Letters()) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert (script.started, engine.num_waiting, engine.num_waiting_batch) == (["batch", "interactive"], 3, 2)
    script.go.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*map(events, replies))
    assert script.started == ["batch", "interactive", "interactive", "batch", "batch"]
    await engine.stop()


async def test_a_cancelled_request_is_aborted_and_the_next_one_starts(engine, script):
    first = [engine.submit(request("a"), Letters()) for _ in range(2)]
    engine.submit(request("b"), Letters())
    await asyncio.sleep(0.01)
    async with first[0]:
        pass
    await asyncio.sleep(0.01)
    assert (script.closed, script.started) == (["a"], ["a", "a", "b"])


async def test_a_time_limit_ends_running_and_waiting_replies(engine, script):
    replies = [engine.submit(request(time_limit_seconds=0.05), Letters()) for _ in range(3)]
    async with asyncio.timeout(5):
        ended = await asyncio.gather(*map(events, replies))
    assert [found[-1].finish_reason for found in ended] == [FinishReason.TIME_LIMIT] * 3
    assert [type(event) for event in ended[0]] == [Started, Delta, Completed] and len(ended[2]) == 1


async def test_when_vllm_ends_every_reply_fails_and_the_engine_is_broken(script):
    reported = asyncio.Event()
    engine = VllmEngine(
        script, limits=CapacityLimits(slots=1, waiting_seqs=8, waiting_tokens=100), on_broken=reported.set
    )
    replies = [engine.submit(request(), Letters()) for _ in range(2)]
    script.is_dead = True
    async with asyncio.timeout(5):
        await reported.wait()
        for reply in replies:
            with pytest.raises(GenerationFailed):
                await events(reply)
    await engine.stop()
