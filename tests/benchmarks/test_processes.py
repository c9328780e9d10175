"""Child processes of the benchmark: paused ones use no CPU time."""

import os
import sys
import time

import psutil
import pytest

from benchmarks.neighbours import busy
from benchmarks.processes import Child, cpu_seconds, tree

# A process that keeps a core busy, and starts another one, which leaves the group, as some servers' workers do.
BUSY = """
import os, subprocess, sys
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, "second"], process_group=0)
while True:
    os.sched_yield()
"""


@pytest.fixture
def child(tmp_path):
    program = tmp_path / "busy.py"
    program.write_text(BUSY)
    child = Child([sys.executable, str(program)], tmp_path / "log", {})
    yield child
    child.stop()


def wait_for_descendant(child):
    deadline = time.monotonic() + 10
    while len(tree(child.pid)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def grows(child, *, within_seconds):
    """Return True as soon as the child's processes have used CPU time, or False if they use none in that time."""
    before, deadline = cpu_seconds(child.pid), time.monotonic() + within_seconds
    while time.monotonic() < deadline:
        time.sleep(0.02)
        if cpu_seconds(child.pid) > before:
            return True
    return False


def test_a_paused_child_and_its_descendants_use_no_cpu_time_until_they_are_resumed(child):
    wait_for_descendant(child)
    assert grows(child, within_seconds=10)
    child.pause()
    assert not grows(child, within_seconds=0.3)
    child.resume()
    assert grows(child, within_seconds=10)


def test_a_paused_child_can_be_stopped_with_its_descendants(child):
    wait_for_descendant(child)
    processes = tree(child.pid)
    child.pause()
    start = time.monotonic()
    child.stop()
    assert time.monotonic() - start < 10  # without the time that a running process gets to end by itself
    psutil.wait_procs(processes, timeout=5)
    assert not any(process.is_running() for process in processes)


def test_busy_neighbours_run_on_every_core_and_end_with_the_block():
    with busy("yield") as children:
        assert len(children) == len(os.sched_getaffinity(0))
        assert all(child.process.poll() is None for child in children)
    assert all(child.process.poll() is not None for child in children)
