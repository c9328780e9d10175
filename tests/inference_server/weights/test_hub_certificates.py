"""A hub behind a proxy, and one with a private certificate authority: errors name the variable to set."""

import contextlib
import json
import socket
import socketserver
import ssl
import subprocess
import sys
import threading

import pytest

from tests.support.certificates import Authority
from tests.support.hub.client import HubClient
from tests.support.hub.server import Hub

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
    hub.scheme, hub.content_host = "https", "127.0.0.1"  # the host of the certificate
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


class Proxy(socketserver.ThreadingTCPServer):
    """A proxy that connects to every host, or refuses every connection."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, answer: str) -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.answer = answer
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Tunnel(socketserver.StreamRequestHandler):
    """Answers CONNECT, then copies bytes in both directions."""

    def handle(self):
        address = self.rfile.readline().decode().split()[1]
        self.server.asked.append(address)
        while self.rfile.readline().strip():
            pass
        self.wfile.write(f"HTTP/1.1 {self.server.answer}\r\n\r\n".encode())
        if not self.server.answer.startswith("200"):
            return
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port))) as upstream:
            threading.Thread(target=self.copy, args=(upstream, self.connection), daemon=True).start()
            self.copy(self.connection, upstream)

    @staticmethod
    def copy(source, target):
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                target.sendall(content)


@pytest.mark.parametrize("answer", ["200 Connected", "407 Proxy Authentication Required"])
def test_every_request_takes_the_proxy_of_https_proxy(hub, tmp_path, answer):
    server, authority = hub
    proxy = Proxy(answer)
    client = HubClient(
        server,
        tmp_path,
        HTTPS_PROXY=proxy.url,
        https_proxy=proxy.url,
        NO_PROXY="",
        no_proxy="",
        SSL_CERT_FILE=authority,
    )
    try:
        outcome = client.fetch("owner/large")
    finally:
        client.kill()
        proxy.shutdown()
        proxy.server_close()
    if answer.startswith("200"):
        assert outcome.path
        assert set(proxy.asked) == {f"127.0.0.1:{server.server_port}"}
    else:
        assert outcome.error.startswith(
            "downloading owner/large failed: the proxy in HTTPS_PROXY refused the connection or did not answer (407"
        )
        assert server.requests == []
