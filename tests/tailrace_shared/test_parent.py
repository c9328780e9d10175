"""A service ends after the process that started it has ended, and reports its port to that process."""

import os
import subprocess
import sys

from tailrace_shared.parent import PORT_VARIABLE, VARIABLE, report_port
from tests.support.processes import ROOT

SERVICE = """
import signal, sys
from tailrace_shared.parent import watch_parent
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
watch_parent()
print("watching", flush=True)
signal.pause()
"""


def test_a_closed_pipe_sends_sigterm_to_the_service():
    reading, writing = os.pipe()
    environment = {**os.environ, VARIABLE: str(reading)}
    command = [sys.executable, "-c", SERVICE]
    with subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=(reading,), stdout=subprocess.PIPE) as service:
        assert service.stdout.readline() == b"watching\n"
        assert service.poll() is None
        os.close(writing)
        assert service.wait(timeout=20) == 7
    os.close(reading)


def test_a_service_reports_its_port_once():
    reading, writing = os.pipe()
    environment = {PORT_VARIABLE: str(writing)}
    for _ in range(2):
        report_port(8787, environment)
    with open(reading) as pipe:
        assert pipe.read() == "8787\n"
    assert environment == {}
