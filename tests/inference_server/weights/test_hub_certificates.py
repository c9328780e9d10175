"""A hub behind a proxy with a certificate authority of its own: the error names the variable, which then helps."""

import json
import os
import ssl
import subprocess
import sys
import threading

import pytest

from tests.inference_server.weights.test_sources import Hub
from tests.support.certificates import Authority
from tests.support.processes import ROOT

# A separate process, because huggingface_hub fixes its address at import.
READ_TWICE = """
import json, os, pathlib, sys, time
import huggingface_hub
from inference_server.weights.sizes import read_config
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError

time.sleep = lambda seconds: None  # the pauses between the hub's attempts

def outcome():
    try:
        return read_config(Weights(hub="owner/large"), pathlib.Path("unused"), may_fetch=True).model_type
    except ConfigurationError as error:
        return str(error)

outcomes = [outcome()]
os.environ["SSL_CERT_FILE"] = sys.argv[1]
huggingface_hub.close_session()
print(json.dumps([*outcomes, outcome()]))
"""


@pytest.fixture
def hub(tiny_model, tmp_path):
    """Run a hub with TLS. Returns it and the file of its authority."""
    hub, authority = Hub(tiny_model("llama-2")), Authority(tmp_path)
    files = authority.issue("hub")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    hub.socket = context.wrap_socket(hub.socket, server_side=True)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hub, authority.path
    hub.shutdown()
    hub.server_close()


def test_an_untrusted_certificate_is_named_with_the_variable_that_helps(hub, tmp_path):
    server, authority = hub
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "SSL_"))}
    address = {"HF_ENDPOINT": f"https://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", READ_TWICE, str(authority)],
        env={**kept, **address, "NO_PROXY": "*", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    untrusted, trusted = json.loads(done.stdout)
    assert untrusted.startswith(
        "downloading owner/large failed: the certificate of the hub, or of a proxy before it, is not "
    )
    assert "set SSL_CERT_FILE to a file" in untrusted
    assert trusted == "llama"
