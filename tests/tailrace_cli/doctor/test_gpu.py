"""`tailrace doctor` on a machine with a GPU, whose functions in torch are fakes."""

from types import SimpleNamespace

import pytest
import torch

from inference_server.gpu import triton_support
from inference_server.serving.catalog import read_catalog
from inference_server.settings.server import Settings
from tailrace_cli.doctor import gpu, machine

GIB = 2**30
ENTRY = """
[[models]]
name = "{name}"
source = {source}
precision = "{precision}"
context_length = 100
sequence_length = 60
"""


@pytest.fixture
def card(monkeypatch, tmp_path):
    """Makes torch report an H200, on which Triton can run. Its attributes may be changed."""
    fake = SimpleNamespace(capability=(9, 0), free=138 * GIB, total=140 * GIB, obstacle=None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: fake.capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (fake.free, fake.total))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(triton_support, "obstacle", lambda: fake.obstacle)
    monkeypatch.setattr(triton_support, "has_triton", lambda: fake.obstacle is None)
    monkeypatch.setattr(gpu, "_DRIVER_FILE", tmp_path / "driver")
    return fake


@pytest.fixture
def check(tiny_model, tmp_path):
    """Returns the findings about models with these architectures and precisions, as marks and texts."""

    def run(*models: tuple[str, str], **settings: object) -> list[tuple[str, str]]:
        catalog = tmp_path / "catalog.toml"
        catalog.write_text(
            "".join(
                ENTRY.format(name=f"m{number}", source=f'{{ path = "{tiny_model(one)}" }}', precision=precision)
                for number, (one, precision) in enumerate(models)
            )
        )
        findings = gpu.models(read_catalog(catalog), Settings(cache_dir=tmp_path, **settings))
        return [(finding.mark, finding.text) for finding in findings]

    return run


def test_the_gpu_is_reported_with_cuda_driver_and_triton(card, tmp_path):
    (tmp_path / "driver").write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release\n")
    findings = [finding for finding in machine.packages() if finding.is_ok is not False]
    texts = [finding.text for finding in findings[-3:]]
    assert texts[0].startswith("NVIDIA H200, compute capability 9.0, 138.0 of 140.0 GiB free (found in ")
    assert texts[1] == "torch is built for CUDA 13.0, the driver is 580.65.06"
    assert texts[2].startswith("Triton ") and texts[2].endswith(" can compile kernels")


def test_a_reason_why_triton_cannot_run_is_a_warning(card):
    card.obstacle = "Triton finds no C compiler (install gcc, or set CC)"
    finding = list(gpu.gpu())[-1]
    assert (finding.mark, finding.text.startswith(card.obstacle)) == ("WARN", True)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (("llama-2", "float16"), "float16, fused decoder layers by Triton kernels, CUDA graphs"),
        (
            ("qwen-3", "bitsandbytes-int8"),
            "bitsandbytes-int8, fused decoder layers by Triton kernels, int8 product of this server, CUDA graphs",
        ),
        (("gemma-2", "bfloat16"), "bfloat16, modules of transformers, attention by Triton kernels, CUDA graphs"),
        (("llama-2", "int4"), "float16, fused decoder layers by Triton kernels, CUDA graphs"),
    ],
)
def test_the_path_of_a_model_is_reported(card, check, model, expected):
    assert check(model)[0] == ("ok", f"m0: as {expected}")


def test_bfloat16_is_reported_as_float16_on_an_old_gpu(card, check):
    card.capability = (7, 5)
    assert check(("llama-2", "bfloat16"))[0][1].startswith("m0: as float16, ")


def test_a_threshold_keeps_bitsandbytes_and_records_no_graphs(card, check):
    _, text = check(("llama-2", "bitsandbytes-int8"), int8_threshold=6.0)[0]
    assert "int8 product of bitsandbytes, no CUDA graphs, because TAILRACE_INT8_THRESHOLD is above 0" in text


def test_without_triton_the_operations_are_those_of_torch(card, check):
    card.obstacle = "Triton is not installed (pip install triton)"
    assert "by torch's operations" in check(("llama-2", "float16"))[0][1]
    assert "int8 product of bitsandbytes" in check(("llama-2", "bitsandbytes-int8"))[0][1]


def test_entries_that_share_an_engine_are_one_line(card, check):
    path, memory = check(("llama-2", "float16"), ("llama-2", "int4"))
    assert path[1].startswith("m0 + m1: as float16, ")
    assert memory == (
        "ok",
        "the models fit into the GPU's memory: 0.0 GiB of weights, tokens of KV cache: 10240 for m0 + m1",
    )


def test_memory_that_other_programs_hold_is_a_warning(card, check):
    card.free = GIB // 8
    mark, text = check(("llama-2", "float16"))[-1]
    assert mark == "WARN"
    assert text.startswith(
        "the models fit into the GPU's memory only if no other program uses it: the models need 0.4 GiB"
    )


def test_models_that_cannot_fit_are_wrong(card, check):
    card.free = card.total = GIB // 4
    mark, text = check(("llama-2", "float16"))[-1]
    assert (mark, text.startswith("the inference server does not start: the models need 0.4 GiB")) == ("WRONG", True)


def test_a_model_that_is_not_downloaded_is_not_checked(card, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(ENTRY.format(name="m", source='{ hub = "tailrace/none" }', precision="bfloat16"))
    (finding,) = gpu.models(read_catalog(catalog), Settings(cache_dir=tmp_path))
    assert finding.is_ok is None
    assert finding.text == "m: as bfloat16, not checked before its first start, which downloads or converts it"


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_on_a_cpu_nothing_is_reported(check, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cpu")
    assert check(("llama-2", "float16"), device=device) == []
