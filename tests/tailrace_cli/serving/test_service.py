"""The ports that services report to `tailrace serve`."""

import os
import signal

import pytest

from tailrace_cli.serving.service import Service
from tests.support.processes import ROOT

NAME = "TAILRACE_GRPC_ADDRESS"


@pytest.fixture
def start(tmp_path):
    """Returns a function that starts a service with this code. The services are killed at the end."""
    reading, writing = os.pipe()
    services = []

    def start(code, address="127.0.0.1:0"):
        (tmp_path / "service.py").write_text(code)
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", NAME: address}
        services.append(Service("service", NAME, environment, reading))
        return services[-1]

    yield start
    for service in services:
        service.process.kill()
        service.process.wait()
    os.close(writing)
    os.close(reading)


def test_the_address_receives_the_reported_port(start):
    code = "import signal\nfrom tailrace_shared.parent import report_port\nreport_port(1234)\nsignal.pause()"
    service = start(code, "[::1]:0")
    service.wait_for_port()
    assert service.is_listening() and service.address == "[::1]:1234"


def test_a_service_that_has_not_reported_is_not_listening(start):
    service = start("import signal\nsignal.pause()")
    assert not service.is_listening()
    service.process.send_signal(signal.SIGKILL)
    service.wait_for_port()
    assert not service.is_listening() and service.address == "127.0.0.1:0"


@pytest.mark.parametrize(
    "code", ["raise SystemExit(1)", "import os\nos.write(int(os.environ['TAILRACE_PORT_PIPE']), b'x')"]
)
def test_a_service_that_ends_or_reports_nonsense_is_not_listening(start, code):
    service = start(code)
    service.wait_for_port()
    assert not service.is_listening()
