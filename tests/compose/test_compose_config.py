"""The output of `docker compose config` for every compose file. Needs the plugin, but no Docker engine."""

import json

import pytest

from tests.compose.stack import BRIDGE, SERVER
from tests.support.processes import ROOT

pytestmark = pytest.mark.compose

OBSERVERS = ["collector", "grafana", "prometheus"]


@pytest.fixture
def services(unstarted, request):
    """Return the services as they would be started with these files and this profile."""
    overrides, profiles = request.param
    unstarted.overrides = overrides
    arguments = [f"--profile={profile}" for profile in profiles]
    return json.loads(unstarted.compose(*arguments, "config", "--format=json", seconds=60))["services"]


DEFAULT = ([], [])
GRPC = (["docker-compose.grpc.yml"], [])
GPU = (["docker-compose.gpu.yml"], [])
OBSERVED = ([], ["observability"])
EVERYTHING = (["docker-compose.grpc.yml", "docker-compose.gpu.yml"], ["observability"])


@pytest.mark.parametrize("services", [DEFAULT], indirect=True)
def test_the_servers_port_is_not_published(services):
    assert services.keys() == {SERVER, BRIDGE}
    assert "ports" not in services[SERVER] and "container_name" not in services[SERVER]


@pytest.mark.parametrize("services", [GRPC], indirect=True)
def test_an_override_publishes_it(services):
    (port,) = services[SERVER]["ports"]
    assert (port["host_ip"], port["target"]) == ("127.0.0.1", 50051)


@pytest.mark.parametrize("services", [GPU], indirect=True)
def test_an_override_gives_the_server_a_gpu_and_llama_2(services):
    server = services[SERVER]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]
    assert server["build"]["args"]["TORCH_INDEX_URL"] == ""
    assert (ROOT / server["environment"]["TAILRACE_CATALOG"]).exists()


@pytest.mark.parametrize("services", [OBSERVED], indirect=True)
def test_the_observability_profile_has_fixed_versions_and_files(services):
    assert sorted(services.keys() - {SERVER, BRIDGE}) == OBSERVERS
    for name in OBSERVERS:
        assert services[name]["image"].partition(":")[2][:1] in "v0123456789"
        assert all((ROOT / mount["source"]).exists() for mount in services[name]["volumes"] if mount["type"] == "bind")


@pytest.mark.parametrize("services", [EVERYTHING], indirect=True)
def test_ports_are_on_loopback_and_containers_are_read_only(services):
    for service in services.values():
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", []))
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
