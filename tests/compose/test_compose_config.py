"""What `docker compose config` makes of docker-compose.yml and of the files beside it. Needs the plugin, not an engine."""

import json

import pytest

from tests.compose.stack import BRIDGE, SERVER
from tests.support.processes import ROOT

pytestmark = pytest.mark.compose

OBSERVERS = ["collector", "grafana", "prometheus"]


@pytest.fixture
def services(unstarted, request):
    """The services as they would be started, with the files and the profile that the test names."""
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
def test_the_servers_port_is_not_published_so_that_there_can_be_several(services):
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
def test_a_profile_adds_what_observes_in_fixed_versions_and_with_files_that_exist(services):
    assert sorted(services.keys() - {SERVER, BRIDGE}) == OBSERVERS
    for name in OBSERVERS:
        assert services[name]["image"].partition(":")[2][:1] in "v0123456789"
        assert all((ROOT / mount["source"]).exists() for mount in services[name]["volumes"] if mount["type"] == "bind")


@pytest.mark.parametrize("services", [EVERYTHING], indirect=True)
def test_nothing_is_published_beyond_this_machine_and_no_container_may_change_itself(services):
    for service in services.values():
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", []))
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
