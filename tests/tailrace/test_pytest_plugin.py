"""The pytest plugin in a project of its own, with recorded replies instead of a model."""

import os
import subprocess
import sys
from importlib.metadata import entry_points

from inference_server.grpc_api.recordings.folder import RecordingsFolder
from tailrace.v1 import inference_pb2 as pb
from tests.inference_server.grpc_api.recordings.messages import DEFAULTS, MODEL, recording
from tests.support.processes import ROOT

TESTS = """
import gc

def test_a_reply(tailrace_client):
    assert tailrace_client.run("hi").text == "a"

def test_what_remains(tailrace_server):
    gc.collect()
"""


def test_the_fixtures_cause_no_warning_in_a_project_that_makes_errors_of_them(tmp_path):
    folder = RecordingsFolder(tmp_path / "recordings", "record")
    folder.add_models([pb.Model(name=MODEL, context_length=5, sampling_defaults=DEFAULTS)])
    folder.save(recording("hi"))
    (tmp_path / "test_project.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TAILRACE_", "PYTEST_"))}
    environment |= {"PYTHONPATH": str(ROOT)}
    if not entry_points(group="pytest11", name="tailrace"):
        # The environment was set up before the package had a plugin.
        environment["PYTEST_PLUGINS"] = "tailrace.pytest_plugin"
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "--tailrace-recordings", "recordings"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout + done.stderr
