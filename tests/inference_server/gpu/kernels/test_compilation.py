"""The kernels compile without a GPU, and need no more registers and shared memory than there are.

This process interprets kernels, so others compile them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inference_server.gpu.kernels.compilation import Report, main
from inference_server.gpu.kernels.compile_case import CAPABILITIES


def _compile(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inference_server.gpu.kernels.compilation", *arguments]
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = inherited | {"TRITON_CACHE_DIR": str(cache)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


def test_a_specialization_of_each_kernel_compiles_within_the_limits(tmp_path: Path) -> None:
    result = _compile(tmp_path, "--first", "--capabilities", "90", "--processes", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    names = {line.split()[0] for line in result.stdout.splitlines()[2:]}
    expected = {"paged_decode_attention", "paged_prefill_attention", "int8_linear", "rms_norm", "rope_and_write"}
    assert names == expected | {"silu_mul"}


@pytest.mark.rehearsal
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_all_specializations_compile_within_the_limits(capability: int, tmp_path: Path) -> None:
    result = _compile(tmp_path, "--capabilities", str(capability))
    assert result.returncode == 0, result.stdout + result.stderr


def test_compiling_under_the_interpreter_ends_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("report", "problems"),
    [
        (Report("fits", 90, registers=255, spilled_bytes=0, shared_memory=232448), 0),
        (Report("spills", 90, registers=255, spilled_bytes=8, shared_memory=0), 1),
        (Report("fits no L4", 89, registers=128, spilled_bytes=0, shared_memory=114688), 1),
        (Report("exceeds all", 75, registers=256, spilled_bytes=16, shared_memory=70000), 3),
    ],
    ids=lambda value: value.name if isinstance(value, Report) else None,
)
def test_each_exceeded_limit_is_a_problem(report: Report, problems: int) -> None:
    assert len(report.problems()) == problems
