"""The plan of the machine's memory for models on a CPU."""

import pytest
import torch

from inference_server.kernels.isa import choice
from inference_server.serving import cpu_plan, startup
from inference_server.serving.cpu_plan import CpuDemand, check_memory, cpu_demands, limited_caches
from inference_server.serving.engine_groups import group_entries
from inference_server.settings.server import Settings
from tailrace_shared.config_errors import ConfigurationError
from tests.support.engines import entry, hosting

CPU = torch.device("cpu")
GIB, MIB = 2**30, 2**20


def demand(name="m", weights=8, max_len=4096, slots=4, load=0):
    return CpuDemand(
        name=name,
        weight_bytes=int(weights * GIB),
        int4_bytes=int(weights * GIB / 2),
        load_bytes=int(max(weights, load) * GIB),
        token_bytes=MIB // 8,
        max_len=max_len,
        max_running_seqs=slots,
    )


def refusal(free, *demands):
    with pytest.raises(ConfigurationError) as caught:
        check_memory(int(free * GIB), demands)
    return str(caught.value)


def test_a_model_that_cannot_fit_is_refused_with_the_figures():
    assert refusal(4, demand()) == (
        "the models need 8.5 GiB of memory, but 4.0 GiB are free: 8.0 GiB for weights (m 8.0 GiB), 0.5 GiB for one longest "
        "sequence of each (4096 tokens of 0.125 MiB); serve a smaller model, or use a machine with more memory"
    )


@pytest.mark.parametrize(
    ("free", "demands", "remedy"),
    [
        (5, [demand()], "set TAILRACE_PRECISION=int4"),
        (9, [demand(max_len=16_384)], "lower TAILRACE_MAX_CONTEXT"),
        (9, [demand("a"), demand("b")], "serve fewer models"),
    ],
)
def test_the_refusal_has_a_remedy(free, demands, remedy):
    assert remedy in refusal(free, *demands)


def test_a_model_that_cannot_be_loaded_beside_the_others_is_refused():
    check_memory(20 * GIB, [demand("a", load=18), demand("b", load=8)])
    assert refusal(20, demand("a", load=8), demand("b", load=18)) == (
        "loading b for the first time needs 26.0 GiB of memory, but 20.0 GiB are free: its weights are 8.0 GiB only after they "
        "are packed; serve a GGUF file of the model, or use a machine with more memory for the first start and keep its "
        "TAILRACE_CACHE_DIR"
    )


def test_models_that_fit_exactly_are_accepted():
    check_memory(8 * GIB + GIB // 2, [demand()])


def test_caches_are_limited_only_by_too_little_memory():
    demands = {"a": demand("a", weights=1), "b": demand("b", weights=1)}
    assert limited_caches(8 * GIB, demands) == {}
    limited = limited_caches(4 * GIB, demands)
    assert limited["a"] == limited["b"] and 4096 < limited["a"] < 4 * 4096
    assert sum(limited.values()) * MIB // 8 <= 0.9 * 4 * GIB - 2 * GIB


def test_a_cache_holds_one_longest_sequence_at_least():
    assert limited_caches(3 * GIB, {"a": demand(weights=2.4, max_len=4000)}) == {"a": 4000}


def test_demands_come_from_the_configuration(tiny_model, tmp_path):
    groups = group_entries([entry(tiny_model("llama-2"), precision="float32")], CPU)
    ((key, found),) = cpu_demands(groups, Settings(cache_dir=tmp_path, max_running_seqs=2)).items()
    # 3 layers with keys and values of 4 heads of 16 numbers.
    assert found.token_bytes == 3 * 2 * 64 * 4
    assert 3 * (4 * 64 * 64 + 3 * 64 * 128) * 4 < found.weight_bytes < 10**6


async def test_a_packed_model_needs_no_memory_for_loading(tiny_model, tmp_path):
    given, settings = (
        entry(tiny_model("llama-2-heads-of-32"), precision="int4"),
        Settings(cache_dir=tmp_path, device="cpu"),
    )
    groups = group_entries([given], CPU)
    (before,) = cpu_demands(groups, settings).values()
    async with hosting(given, cache_dir=tmp_path):
        (after,) = cpu_demands(groups, settings).values()
    assert before.load_bytes > 4 * before.weight_bytes
    if choice.available():
        assert after.load_bytes == after.weight_bytes == before.weight_bytes


async def test_nothing_is_loaded_if_the_models_do_not_fit(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_plan, "available_memory_bytes", lambda: 10**5)
    with pytest.raises(ConfigurationError, match=r"^the models need .* but 0\.0 GiB are free"):
        await startup.load_all(
            [entry(tiny_model("llama-2"))], Settings(cache_dir=tmp_path, device="cpu"), lambda: None, {}
        )
