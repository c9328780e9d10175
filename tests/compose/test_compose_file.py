"""docker-compose.yml compared with the code's settings. Needs no Docker."""

import re

import pytest

import http_bridge.settings
import inference_server.settings
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
    [("inference_server", inference_server.settings.Settings), ("http_bridge", http_bridge.settings.Settings)],
)
def test_every_setting_of_the_environment_reaches_its_service(service, settings):
    text = (ROOT / "docker-compose.yml").read_text()
    section = re.search(rf"^  {service}:\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    assert section
    named = set(re.findall(r"^      (TAILRACE_\w+):", section[1], re.MULTILINE))
    assert named - FIXED == {f"TAILRACE_{name.upper()}" for name in settings.model_fields} - FIXED
