"""The GPU check itself: its records, figures, goals and carried packages, and a run of all parts on a CPU."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import carry, outcome
from benchmarks.gpu import state as states
from benchmarks.gpu.checks import Check, LeftOut, Setup
from benchmarks.gpu.part import Recorder
from benchmarks.gpu.parts.benchmark import figures
from benchmarks.gpu.subjects import Reply

ROOT = Path(__file__).parents[2]
SETUP = Setup(torch.device("cpu"), "tiny")


def checks_of(tmp_path, *checks, seconds=60.0):
    Recorder(tmp_path / "state.json", SETUP, seconds).run("part", list(checks))
    return states.read(tmp_path / "state.json")["checks"]


def test_a_failed_check_is_recorded_with_its_reason_and_its_figures(tmp_path):
    def fail(setup, note):
        note("figure", 1)
        raise ValueError("the first line\nthe second line")

    recorded = checks_of(tmp_path, Check("bad", 9, fail), Check("good", 9, lambda setup, note: None))
    assert recorded["bad"] == {
        "status": "failed",
        "figures": {"figure": 1},
        "reason": "ValueError: the first line",
        "seconds": 0.0,
    }
    assert recorded["good"]["status"] == "ok"


def test_a_check_that_needs_a_gpu_is_left_out_with_the_reason(tmp_path):
    recorded = checks_of(tmp_path, Check("gpu", 9, lambda setup, note: setup.need_cuda()))
    assert (recorded["gpu"]["status"], recorded["gpu"]["reason"]) == ("left out", "needs a GPU")


def test_checks_are_left_out_when_the_time_is_over(tmp_path):
    recorded = checks_of(tmp_path, Check("late", 9, lambda setup, note: None), seconds=0.5)
    assert (recorded["late"]["status"], recorded["late"]["reason"]) == ("left out", "the time was over")


def test_a_check_that_is_recorded_does_not_run_again(tmp_path):
    checks_of(tmp_path, Check("once", 9, lambda setup, note: note("runs", 1)))
    recorded = checks_of(tmp_path, Check("once", 9, lambda setup, note: note("runs", 2)))
    assert recorded["once"]["figures"] == {"runs": 1}


def test_a_failed_check_releases_its_tensors(tmp_path):
    alive = []

    def fail(setup, note):
        import weakref

        tensor = torch.zeros(3)
        alive.append(weakref.ref(tensor))
        raise LeftOut("enough")

    checks_of(tmp_path, Check("bad", 9, fail))
    assert alive[0]() is None


def test_figures_of_a_load_are_never_negative():
    replies = [Reply(first=1.0, last=2.0, token_ids=[1] * 11), Reply(first=1.5, last=2.0, token_ids=[1] * 11)]
    found = figures([replies])
    assert found == {"tokens_per_s": 11.0, "decode_tokens_per_s": 20.0, "ttft_ms": 1250.0, "tpot_ms": 75.0}
    assert figures([[Reply(first=1.0, last=1.0, token_ids=[1])]])["decode_tokens_per_s"] == 0.0


def results_of(shapes="llama-2-7b"):
    def record(bound, one, many):
        loads = {"1 stream": one, "64 streams": many}
        rates = {
            load: {"tokens_per_s": rate, "decode_tokens_per_s": rate, "ttft_ms": 1.0} for load, rate in loads.items()
        }
        return {"status": "ok", "figures": {"shapes": shapes, "bound_tokens_per_s": bound, **rates}}

    subjects = {
        outcome.OURS_16: record(100.0, 80.0, 600.0),
        outcome.OURS_8: record(200.0, 100.0, 700.0),
        outcome.CONTINUOUS: {"status": "failed", "reason": "it took longer than 60 s", "figures": {}},
    }
    return {"parts": {"benchmark": {"checks": subjects, "seconds": 1.0}}}


def test_goals_are_ratios_of_the_figures_and_a_missing_figure_has_none():
    assert [(goal.least, goal.value) for goal in outcome.goals(results_of())] == [(0.7, 0.8), (1.3, 1.25), (2.0, None)]


def test_tiny_shapes_have_no_ratios():
    assert [goal.value for goal in outcome.goals(results_of("tiny"))] == [None, None, None]


def test_the_summary_contains_goals_and_failures():
    results = results_of()
    results["goals"] = [goal._asdict() for goal in outcome.goals(results)]
    text = outcome.summary(results)
    assert "share of the bound >= 0.7: 0.8 (reached)" in text
    assert "int8 / 16-bit, 1 stream >= 1.3: 1.25 (missed)" in text
    assert f"failed: benchmark, {outcome.CONTINUOUS}: it took longer than 60 s" in text


def test_a_carried_wheel_contains_one_library_and_a_true_record(tmp_path):
    libraries = {f"bitsandbytes/libbitsandbytes_{name}.so": b"x" for name in ("cpu", "cuda118", "cuda130", "rocm70")}
    files = {
        **libraries,
        "bitsandbytes/__init__.py": b"pass",
        "bitsandbytes-1.dist-info/METADATA": b"Name: bitsandbytes",
    }
    path = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    carry.write_wheel(path, files, "130")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert [name for name in names if name.endswith(".so")] == [
            "bitsandbytes/libbitsandbytes_cpu.so",
            "bitsandbytes/libbitsandbytes_cuda130.so",
        ]
        lines = [line.split(",") for line in archive.read("bitsandbytes-1.dist-info/RECORD").decode().splitlines()]
        assert [line[0] for line in lines] == names
        for name, digest, size in lines[:-1]:
            data = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={expected}", len(data))


def test_a_release_of_cuda_without_a_library_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no library for CUDA 999"):
        carry.write_wheel(tmp_path / "a.whl", {"bitsandbytes/libbitsandbytes_cuda130.so": b"x"}, "999")


# Packages of the server that a machine with torch, Triton and transformers need not have.
_ABSENT = "pydantic llvmlite grpc google prometheus_client throttled llguidance gguf accelerate opentelemetry"
_BLOCKER = f"""
import sys
from importlib.machinery import PathFinder
class Filter(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in {set(_ABSENT.split())!r}
        return None if absent else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Filter
"""


@pytest.mark.rehearsal
@pytest.mark.timeout(300)
def test_every_part_runs_on_a_cpu_with_torch_transformers_and_bitsandbytes_alone(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(_BLOCKER)
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--out", str(tmp_path / "out"), "--seconds", "280"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), "."]), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)  # the check sets it where it is needed
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    log = (tmp_path / "out" / "gpu.log").read_text()
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{log[-3000:]}"
    print(f"{time.monotonic() - start:.0f} s")
    results = json.loads((tmp_path / "out" / "gpu.json").read_text())
    reasons = {
        check["reason"]
        for part in results["parts"].values()
        for check in part["checks"].values()
        if check["status"] != "ok"
    }
    assert reasons == {"needs a GPU", "one tiny shape is enough"}
