"""The memory that this process may use on a fake machine with 8 GiB available."""

import pytest

from inference_server import machine

GIB = 2**30
V2, V1 = "0::/pod/box", "5:memory:/docker/box\n4:cpu,cpuacct:/docker/box"
MEMINFO = f"MemTotal: {16 * 2**20} kB\nMemFree: {2**20} kB\nMemAvailable: {8 * 2**20} kB\n"
BOX, POD, OLD = "sys/fs/cgroup/pod/box/memory", "sys/fs/cgroup/pod/memory", "sys/fs/cgroup/memory/docker/box/memory"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Returns a function that writes the machine's files and returns their folder."""
    monkeypatch.setattr(machine, "machine_memory_bytes", lambda: 16 * GIB)

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("files", "allowed", "available"),
    [
        ({}, 16, 8),
        ({"proc/self/cgroup": V2, f"{BOX}.max": "max", f"{BOX}.current": GIB}, 16, 8),
        ({"proc/self/cgroup": V2, f"{BOX}.max": 2 * GIB, f"{BOX}.current": GIB}, 2, 1),
        ({"proc/self/cgroup": V2, f"{POD}.max": 4 * GIB, f"{POD}.current": GIB}, 4, 3),
        ({"proc/self/cgroup": V2, f"{BOX}.max": 2 * GIB, f"{BOX}.current": 3 * GIB}, 2, 0),
        ({"proc/self/cgroup": V2, f"{BOX}.max": 32 * GIB, f"{BOX}.current": GIB}, 16, 8),
        ({"proc/self/cgroup": V2, f"{BOX}.max": "broken", f"{BOX}.current": GIB}, 16, 8),
        ({"proc/self/cgroup": V1, f"{OLD}.limit_in_bytes": 2 * GIB, f"{OLD}.usage_in_bytes": GIB}, 2, 1),
        ({"proc/self/cgroup": V1, f"{OLD}.limit_in_bytes": 2**63 - 4096, f"{OLD}.usage_in_bytes": GIB}, 16, 8),
    ],
)
def test_the_smallest_limit_and_its_usage_determine_the_memory(root, files, allowed, available):
    folder = root({"proc/meminfo": MEMINFO, **files})
    assert machine.memory_bytes(folder) == allowed * GIB
    assert machine.available_memory_bytes(folder) == available * GIB


def test_cached_file_content_counts_as_available(root):
    files = {f"{BOX}.max": 2 * GIB, f"{BOX}.current": 2 * GIB, f"{BOX}.stat": f"anon {GIB}\ninactive_file {GIB}"}
    folder = root({"proc/meminfo": MEMINFO, "proc/self/cgroup": V2, **files})
    assert machine.available_memory_bytes(folder) == GIB


def test_without_proc_the_memory_of_the_machine_is_available(tmp_path):
    assert machine.available_memory_bytes(tmp_path) == machine.machine_memory_bytes()
