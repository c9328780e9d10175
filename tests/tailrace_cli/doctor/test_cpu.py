"""`tailrace doctor` on a CPU: instruction sets, threads, large pages, the path of each model, and the speed of products."""

import pytest
import torch

from inference_server.kernels.isa import choice, cpu
from inference_server.kernels.jit import cores
from inference_server.serving.catalog import read_catalog
from inference_server.settings.server import Settings
from tailrace_cli.doctor import cpu as doctor_cpu
from tailrace_cli.doctor import cpu_speed

ENTRY = """
[[models]]
name = "{name}"
source = {{ path = "{path}" }}
precision = "{precision}"
context_length = 100
sequence_length = 60
"""
NEEDS_KERNELS = pytest.mark.skipif(not choice.available(), reason="this CPU has no kernels")
# Seconds of products: int8 is faster with one row, int4 fastest.
TIMES = {
    ("bfloat16", 1): 0.002,
    ("bfloat16", 32): 0.006,
    ("bitsandbytes-int8", 1): 0.001,
    ("bitsandbytes-int8", 32): 0.006,
    ("int4", 1): 0.0005,
    ("int4", 32): 0.009,
}


@pytest.fixture(autouse=True)
def _own_variables(monkeypatch):
    for name in (choice.VARIABLE, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def catalog(tiny_model, tmp_path):
    """Returns a function from architectures and precisions to the entries and settings of a catalog."""

    def make(*models, **settings):
        path = tmp_path / "catalog.toml"
        path.write_text(
            "".join(
                ENTRY.format(name=f"m{number}", path=tiny_model(one), precision=precision)
                for number, (one, precision) in enumerate(models)
            )
        )
        return read_catalog(path), Settings(cache_dir=tmp_path, device="cpu", **settings)

    return make


def lines(findings):
    return [(finding.mark, finding.text) for finding in findings]


# The instruction set.


@NEEDS_KERNELS
def test_the_best_instruction_set_is_used_and_the_others_are_named():
    best, *others = (isa.name for isa in choice.available())
    (mark, text), *_ = lines(doctor_cpu.kernels())
    assert (mark, text.startswith(f"models on this CPU use kernels for {best}")) == ("ok", True)
    assert all(name in text for name in others)


@NEEDS_KERNELS
def test_an_instruction_set_below_the_best_is_a_warning(monkeypatch):
    best, *others = (isa.name for isa in choice.available())
    if not others:
        pytest.skip("this CPU has one instruction set")
    monkeypatch.setenv(choice.VARIABLE, others[-1])
    first, second, *_ = lines(doctor_cpu.kernels())
    assert first[1].startswith(f"models on this CPU use kernels for {others[-1]} (this CPU also offers {best}")
    assert second == ("WARN", f"TAILRACE_CPU_FEATURES excludes {best}")


def test_kernels_that_are_switched_off_are_a_warning(monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, "none")
    (finding,) = doctor_cpu.kernels()
    assert finding.mark == "WARN" and finding.text.startswith("models on this CPU run by torch's operations: ")
    assert "multiply int8 and int4 weights in float32" in finding.advice


def test_a_missing_compiler_is_named(monkeypatch):
    def fail():
        raise ImportError

    monkeypatch.setattr(choice, "available", lambda: ())
    monkeypatch.setattr(cpu, "is_x86", fail)
    (finding,) = doctor_cpu.kernels()
    assert finding.text.endswith("torch's operations: llvmlite, which compiles the kernels, is not installed")


@NEEDS_KERNELS
def test_amx_that_the_operating_system_refuses_is_a_warning(monkeypatch):
    monkeypatch.setattr(cpu, "refused_amx", lambda: "the operating system does not let this process use AMX")
    assert lines(doctor_cpu.kernels())[-1] == (
        "WARN",
        "this CPU has AMX, which the kernels do not use: the operating system does not let this process use AMX",
    )


def test_kernels_are_not_checked_without_the_server(monkeypatch):
    monkeypatch.setattr(doctor_cpu, "has_server", lambda: False)
    (finding,) = doctor_cpu.kernels()
    assert finding.is_ok is None and "not installed here" in finding.text
    assert list(doctor_cpu.environment()) == []


# Threads and pages.


@pytest.mark.parametrize(("threads", "is_reported"), [("4", True), ("2", False), ("", False), ("many", False)])
def test_more_threads_than_cores_are_a_warning(monkeypatch, threads, is_reported):
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    text = "OMP_NUM_THREADS=4 is more than these cores: threads that share a core wait for each other"
    assert (("WARN", text) in lines(doctor_cpu.environment())) is is_reported


@pytest.mark.parametrize(
    ("content", "is_reported"), [("always madvise [never]", True), ("always [madvise] never", False)]
)
def test_large_pages_that_are_switched_off_are_a_warning(monkeypatch, tmp_path, content, is_reported):
    (tmp_path / "enabled").write_text(content)
    monkeypatch.setattr(doctor_cpu, "_LARGE_PAGES", tmp_path / "enabled")
    found = [finding for finding in doctor_cpu.environment() if "large pages" in finding.text]
    assert [finding.mark for finding in found] == ["WARN"] * is_reported


# The path of each model.


def test_each_model_has_its_precision_and_path(catalog):
    models = (("llama-2-heads-of-32", "int4"), ("qwen-3", "float32"))
    first, second = lines(doctor_cpu.models(*catalog(*models)))
    isa = choice.chosen()
    kernels = f"kernels for {isa.name}" if isa else "torch's operations"
    assert first[1].startswith(f"m0: as int4, {kernels}, ")
    assert second[1].startswith(f"m1: as float32, {kernels}, modules of transformers (")


def test_memory_is_compared_with_the_models(catalog, monkeypatch):
    given = catalog(("llama-2", "float32"))
    (finding,) = doctor_cpu.memory(*given)
    assert finding.is_ok and finding.text.startswith("the models fit into the memory: 0.0 GiB of weights, ")
    monkeypatch.setattr("inference_server.machine.available_memory_bytes", lambda: 1000)
    (finding,) = doctor_cpu.memory(*given)
    assert finding.is_warning and "does not start now: the models need" in finding.text
    monkeypatch.setattr("inference_server.machine.memory_bytes", lambda: 2000)
    (finding,) = doctor_cpu.memory(*given)
    assert finding.is_ok is False and "does not start: the models need" in finding.text


def test_entries_that_share_an_engine_are_one_line(catalog):
    models = (("llama-2-heads-of-32", "int4"), ("llama-2-heads-of-32", "int4"))
    (line,) = lines(doctor_cpu.models(*catalog(*models)))
    assert line[1].startswith("m0 + m1: as int4, ")


def test_a_model_that_is_not_on_disk_has_no_path_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    path = tmp_path / "catalog.toml"
    path.write_text(ENTRY.replace("path =", "hub =").format(name="m", path="tailrace/none", precision="bfloat16"))
    (finding,) = doctor_cpu.models(read_catalog(path), Settings(cache_dir=tmp_path, device="cpu"))
    text = "m: as bfloat16; its first start, which downloads or converts it, determines the path"
    assert (finding.is_ok, finding.text) == (None, text)


def test_nothing_is_reported_or_measured_if_a_gpu_is_used(catalog, monkeypatch):
    entries, settings = catalog(("llama-2", "int4"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    settings = Settings(cache_dir=settings.cache_dir, device="auto")
    assert list(doctor_cpu.models(entries, settings)) == []
    (finding,) = cpu_speed.speed(entries, settings)
    assert finding.text.startswith("not measured")


# The speed of products.


def test_the_report_compares_precisions_for_each_model(catalog, monkeypatch):
    monkeypatch.setattr(cpu_speed, "measure", lambda isa: TIMES)
    monkeypatch.setattr(choice, "chosen", lambda: choice.available()[0])
    if not choice.available():
        pytest.skip("this CPU has no kernels")
    models = [("llama-2", precision) for precision in ("bfloat16", "bitsandbytes-int8", "int4", "float32")]
    _, one, many, *hints = lines(cpu_speed.speed(*catalog(*models)))
    product = "a product takes 2.00 ms with 16-bit weights, 0.50 of it with int8 weights, 0.25 of it with int4 weights"
    assert one[1] == f"1 stream, kernels for {choice.available()[0].name}: {product}"
    assert many[1].startswith("32 streams") and "1.50 of it with int4" in many[1]
    text = '{}: with precision = "int4" in the catalog, matrix products would take this share of the time: {}'
    assert [hint[1] for hint in hints] == [
        text.format("m0", "0.25 for 1 stream, 1.50 for 32 streams"),
        text.format("m1", "0.50 for 1 stream, 1.50 for 32 streams"),
    ]


@NEEDS_KERNELS
def test_a_better_instruction_set_is_measured_too(catalog, monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, "none")
    best = {key: seconds / (4 if key[1] == 1 else 2) for key, seconds in TIMES.items()}
    monkeypatch.setattr(cpu_speed, "measure", lambda isa: TIMES if isa is None else best)
    finding = list(cpu_speed.speed(*catalog(("llama-2", "int4"))))[-1]
    name = choice.available()[0].name
    assert finding.text == f"with kernels for {name}, the same products take 0.25 to 0.50 of the time"
    assert (finding.mark, finding.advice) == ("WARN", "Unset TAILRACE_CPU_FEATURES.")


def test_products_that_cannot_be_measured_are_wrong(catalog, monkeypatch):
    def fail(isa):
        raise RuntimeError("the kernel linear-bf16 cannot be compiled")

    monkeypatch.setattr(cpu_speed, "measure", fail)
    assert lines(cpu_speed.speed(*catalog(("llama-2", "int4"))))[1:] == [
        ("WRONG", "matrix products cannot be measured: the kernel linear-bf16 cannot be compiled")
    ]


@pytest.mark.parametrize("isa", [None, pytest.param("best", marks=NEEDS_KERNELS)])
def test_every_precision_is_measured_on_one_thread(monkeypatch, isa):
    monkeypatch.setattr(cpu_speed, "WIDTH", 256)
    monkeypatch.setattr(cpu_speed, "TOTAL_BYTES", 1 << 20)
    monkeypatch.setattr(cpu_speed, "SECONDS", 0.001)
    before = torch.get_num_threads()
    times = cpu_speed.measure(choice.available()[0] if isa else None)
    assert set(times) == set(TIMES) and all(seconds > 0 for seconds in times.values())
    assert torch.get_num_threads() == before
