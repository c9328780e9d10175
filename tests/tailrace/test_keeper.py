"""The process that holds the server of a test run."""

import subprocess
import sys

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
