"""A hub behind a proxy with a certificate authority of its own: the error names the variable, which then helps."""

import json
import ssl
import subprocess
import sys

import pytest

from tests.support.certificates import Authority
from tests.support.hub import Hub

# A separate process, because huggingface_hub fixes its address at import.
READ_TWICE = """
import json, os, pathlib, sys, time
import huggingface_hub
from inference_server.weights.fetching.hub import HubModel
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError

time.sleep = lambda seconds: None  # the pauses between the hub's attempts

def outcome():
    try:
        folder = HubModel(Weights(hub="owner/large"), pathlib.Path("unused")).fetch_config()
        return json.loads((folder / "config.json").read_text())["model_type"]
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
    hub, authority = Hub(), Authority(tmp_path)
    hub.add("owner/large", tiny_model("llama-2"))
    hub.scheme = "https"
    files = authority.issue("hub")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    hub.socket = context.wrap_socket(hub.socket, server_side=True)
    yield hub.start(), authority.path
    hub.close()


def test_an_untrusted_certificate_is_named_with_the_variable_that_helps(hub, tmp_path):
    server, authority = hub
    environment = server.environment(tmp_path / "hub")
    environment.pop("SSL_CERT_FILE", None)
    done = subprocess.run(
        [sys.executable, "-c", READ_TWICE, str(authority)],
        env=environment,
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
