"""The order of a start and its plan of a GPU's memory. The GPU is a fake: the engines run on the CPU."""

import json
from dataclasses import replace
from shutil import copytree
from types import SimpleNamespace

import pytest
import torch

from inference_server.engine.native import build as native
from inference_server.gpu.memory import GIB, least_needs, plan
from inference_server.serving import gpu_plan, startup
from inference_server.settings.server import Settings
from tailrace_shared.config_errors import ConfigurationError
from tests.support.engines import collect, entry, request

CPU = torch.device("cpu")


class Recorder:
    """A native builder that runs everything on the CPU. Records the calls, and the cache tokens of each engine."""

    def __init__(self):
        self.calls = []
        self.cache_tokens = []

    def load(self, key, device, settings):
        self.calls.append("load")
        return native.load(key, CPU, settings)

    async def build(self, spec):
        self.calls.append("build")
        self.cache_tokens.append(spec.cache_tokens)
        return await native.build(replace(spec, device=CPU))


@pytest.fixture
def gpu(monkeypatch):
    """Makes torch report a GPU. Its attributes may be changed."""
    card = SimpleNamespace(free=4 * GIB, reserved=0, allocated=0, capability=(8, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: card.capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (card.free, 2 * card.free))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: card.reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: card.allocated)
    return card


async def start(recorder, *entries, **settings):
    """Load the entries, generate with each model, and return the models."""
    builders = {"tailrace": lambda: recorder}
    models = await startup.load_all(list(entries), Settings(max_running_seqs=2, **settings), lambda: None, builders)
    for model in models.values():
        await collect(model, request([5, 6], max_tokens=2))
    for engine in {model.engine for model in models.values()}:
        await engine.stop()
    return models


def two(tiny_model):
    folder = tiny_model("llama-2")
    return entry(folder, name="a"), entry(
        folder, name="b", precision="bfloat16", context_length=100, sequence_length=60
    )


@pytest.mark.parametrize("device", ["cpu", "auto"])
async def test_all_weights_are_loaded_before_the_first_cache_is_made(tiny_model, gpu, device):
    recorder = Recorder()
    models = await start(recorder, *two(tiny_model), device=device)
    assert recorder.calls == ["load", "load", "build", "build"]
    assert list(models) == ["a", "b"]


async def test_on_a_cpu_memory_does_not_limit_the_caches(tiny_model, gpu):
    recorder = Recorder()
    await start(recorder, *two(tiny_model), device="cpu")
    assert recorder.cache_tokens == [None, None]


async def test_the_log_names_the_precision_and_the_path_of_each_entry(tiny_model, caplog):
    caplog.set_level("INFO")
    models = await start(Recorder(), *two(tiny_model), device="cpu")
    assert f"a: float32 weights, {models['a'].engine.path}" in caplog.messages
    assert f"b: bfloat16 weights, {models['b'].engine.path}" in caplog.messages


async def test_sampling_defaults_are_those_of_the_model_and_of_the_catalog(tiny_model, tmp_path):
    folder = copytree(tiny_model("llama-2"), tmp_path / "model")
    config = {"do_sample": True, "temperature": 0.3, "top_k": 20, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(config))
    plain = entry(folder, name="plain", precision="bitsandbytes-int8")
    tuned = replace(plain, name="tuned", sampling={"top_k": 5, "top_p": 0.5})
    for _ in range(2):  # the second start reads the packed weights
        models = await start(Recorder(), plain, tuned, device="cpu", cache_dir=tmp_path / "cache")
        assert models["plain"].sampling == {"temperature": 0.3, "top_k": 20}
        assert models["tuned"].sampling == {"temperature": 0.3, "top_k": 5, "top_p": 0.5}


async def test_models_that_do_not_fit_are_refused_before_any_is_loaded(tiny_model, gpu):
    recorder, gpu.free = Recorder(), GIB // 2
    with pytest.raises(ConfigurationError, match="^the models need 0.8 GiB of GPU memory, but 0.5 GiB are free"):
        await start(recorder, *two(tiny_model))
    assert recorder.calls == []


async def test_caches_divide_the_memory_that_the_weights_leave(tiny_model, gpu):
    recorder, entries, settings = Recorder(), two(tiny_model), Settings(max_running_seqs=2)
    groups = startup.group_entries(entries, torch.device("cuda"))
    demands = [gpu_plan.engine_demand(key, group, settings) for key, group in groups.items()]
    caches = sum(demand.cache_bytes(demand.max_blocks) for demand in demands) * 3 // 4
    needs = least_needs(gpu.free, demands)
    gpu.free = int((needs.weights + needs.working + caches) / 0.98)
    await start(recorder, *entries)
    assert recorder.cache_tokens == plan(gpu.free, demands, has_weights=True)
    assert all(
        least <= granted < most
        for least, granted, most in zip(
            [demand.min_blocks * demand.block_size for demand in demands],
            recorder.cache_tokens,
            [demand.max_blocks * demand.block_size for demand in demands],
            strict=True,
        )
    )


def test_unused_bytes_of_the_allocator_are_free(gpu):
    gpu.free, gpu.reserved, gpu.allocated = 1000, 700, 300
    assert gpu_plan.free_bytes(torch.device("cuda")) == 1400


async def test_bfloat16_becomes_float16_on_an_old_gpu_and_the_log_says_so(tiny_model, gpu, caplog):
    gpu.capability = (7, 5)
    groups = startup.group_entries(two(tiny_model), torch.device("cuda"))
    assert [key.precision for key in groups] == ["float32", "float16"]
    startup._log_replaced_precisions(groups)
    assert caplog.messages == [
        "b: this GPU's compute capability is below 8.0, so it computes in float16 instead of bfloat16"
    ]


async def test_an_unknown_architecture_is_named_before_weights_are_loaded(tiny_model, gpu, tmp_path):
    recorder = Recorder()
    (tmp_path / "config.json").write_text('{"model_type": "none"}')
    with pytest.raises(ConfigurationError, match=f"^cannot load {tmp_path.name}: "):
        await start(recorder, entry(tmp_path))
    assert recorder.calls == []
