"""docker-compose.yml compared with the code's settings. Needs no Docker."""

import re

import pytest

from http_bridge.settings import bridge
from inference_server.settings import server
from tests.support.processes import ROOT

# Inside a container these have fixed values.
FIXED = {
    "TAILRACE_GRPC_ADDRESS",
    "TAILRACE_GRPC_HEALTH_ADDRESS",
    "TAILRACE_HTTP_ADDRESS",
    "TAILRACE_CACHE_DIR",
    # On loopback, which cannot be reached from outside the container.
    "TAILRACE_BINDING_ADDRESS",
}


@pytest.mark.parametrize(
    ("service", "settings"),
    [("inference_server", server.Settings), ("http_bridge", bridge.Settings)],
)
def test_every_setting_of_the_environment_reaches_its_service(service, settings):
    text = (ROOT / "docker-compose.yml").read_text()
    section = re.search(rf"^  {service}:\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    assert section
    named = set(re.findall(r"^      (TAILRACE_\w+):", section[1], re.MULTILINE))
    assert named - FIXED == {f"TAILRACE_{name.upper()}" for name in settings.model_fields} - FIXED
