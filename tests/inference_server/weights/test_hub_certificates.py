"""A hub behind a proxy with a certificate authority of its own: the error names the variable, which then helps."""

import json
import ssl
import threading

import pytest

from tests.inference_server.weights.test_sources import Hub
from tests.support.certificates import Authority

MODEL = "config of owner/large"


@pytest.fixture
def outcome(tiny_model, tmp_path):
    """Return a function that reads a configuration from a hub with TLS, and returns the outcome."""
    hub, authority = Hub(tiny_model("llama-2")), Authority(tmp_path)
    files = authority.issue("hub")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    hub.socket = context.wrap_socket(hub.socket, server_side=True)
    threading.Thread(target=hub.serve_forever, daemon=True).start()

    def start(name, **environment):
        address = {"HF_ENDPOINT": f"https://127.0.0.1:{hub.server_port}"}
        return hub.client(tmp_path / name, MODEL, **address, **environment)

    clients = [start("untrusted"), start("trusted", SSL_CERT_FILE=str(authority.path))]
    yield [
        dict(json.loads(line) for line in client.communicate(timeout=60)[0].splitlines())[MODEL] for client in clients
    ]
    hub.shutdown()
    hub.server_close()


def test_an_untrusted_certificate_is_named_with_the_variable_that_helps(outcome):
    untrusted, trusted = outcome
    assert untrusted.startswith(
        "downloading owner/large failed: the certificate of the hub, or of a proxy before it, is not "
    )
    assert "set SSL_CERT_FILE to a file" in untrusted
    assert trusted == [None, "llama", "llama"]
