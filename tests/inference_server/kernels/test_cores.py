"""The number of threads follows physical cores, affinity and CPU quotas, here of a made-up machine with eight processors."""

import logging
import os
from pathlib import Path

import pytest
import torch

from inference_server.kernels.jit import cores

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux alone has these files")

V2, V1 = "0::/pod/box\n", "5:memory:/\n4:cpu,cpuacct:/docker/box\n1:name=systemd:/\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Returns a function that writes the files of a machine whose processors n and n + 4 are one core."""

    def write(files: dict[str, str], allowed: range = range(8)) -> Path:
        siblings = {
            f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 4},{cpu % 4 + 4}\n"
            for cpu in range(8)
        }
        for name, text in (siblings | files).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(allowed))
        return tmp_path

    return write


@pytest.mark.parametrize(("allowed", "expected"), [(range(8), 4), (range(2), 2), (range(3, 5), 2), (range(4, 5), 1)])
def test_two_hyperthreads_count_as_one_core_and_affinity_limits_the_cores(machine, allowed, expected):
    assert cores.usable_cores(machine({}, allowed)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/pod/box/cpu.max": "200000 100000\n"}, 2),
        ({"sys/fs/cgroup/pod/box/cpu.max": "max 100000\n"}, 4),
        ({"sys/fs/cgroup/pod/box/cpu.max": "max 100000\n", "sys/fs/cgroup/pod/cpu.max": "100000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),  # a container that sees only its own group
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "broken\n"}, 4),
    ],
)
def test_a_quota_of_control_groups_version_2_limits_the_cores(machine, files, expected):
    assert cores.usable_cores(machine({"proc/self/cgroup": V2, **files})) == expected


@pytest.mark.parametrize(("group", "quota", "expected"), [("docker/box/", 300_000, 3), ("", 150_000, 1), ("", -1, 4)])
def test_a_quota_of_control_groups_version_1_limits_the_cores(machine, group, quota, expected):
    folder = f"sys/fs/cgroup/cpu/{group}cpu.cfs_"
    files = {"proc/self/cgroup": V1, f"{folder}quota_us": f"{quota}\n", f"{folder}period_us": "100000\n"}
    assert cores.usable_cores(machine(files)) == expected


def test_without_files_each_processor_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 5, 7})
    assert cores.usable_cores(tmp_path) == 3


@pytest.mark.parametrize(("variable", "expected"), [(None, 2), ("5", 5)])
def test_torch_gets_fewer_threads_unless_the_environment_sets_their_number(monkeypatch, caplog, variable, expected):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        cores.limit_threads()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
    assert ("computing on 2 threads instead of 5" in caplog.text) is (expected == 2)
