"""The process that holds the server of a test run."""

import os
import subprocess
import sys

import pytest

from tailrace.testing import keeper

# A signal arrives while the server, here a process that waits, is being started.
INTERRUPTED = """
import os, signal, subprocess, sys
from tailrace.testing import keeper

start = subprocess.Popen

def interrupted(command):
    os.kill(os.getpid(), signal.SIGTERM)
    server = start([sys.executable, "-c", "import time; time.sleep(60)"])
    print(server.pid, flush=True)
    return server

subprocess.Popen = interrupted
print(keeper.keep(os.getpid(), "", []))
"""


def test_a_signal_during_the_start_stops_the_server():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=40)
    assert (done.stdout.split()[1:], done.returncode) == (["-15"], 0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_test_run_that_has_ended_but_is_still_listed_does_not_exist():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as run:
        assert keeper._exists(run.pid)
        run.stdin.close()
        os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOWAIT)  # its exit code stays unread
        assert not keeper._exists(run.pid)
