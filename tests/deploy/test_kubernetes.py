"""deploy/kubernetes compared with Kubernetes' schemas, with itself and with the code. Needs no cluster."""

import re
import tomllib

import pytest
import yaml

from http_bridge.settings import bridge
from inference_server.grpc_api.server import SERVICE
from inference_server.settings import server
from tests.deploy.manifests import (
    BASE,
    GPU,
    KUBERNETES,
    SERVICES,
    VERSIONS,
    container,
    listed,
    of_kind,
    pod,
    problems,
    read,
    rendered,
    settings,
    walk,
)
from tests.support.processes import ROOT

SETTINGS = {"inference-server": server.Settings, "http-bridge": bridge.Settings}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
NAME = "app.kubernetes.io/name"


@pytest.fixture(params=[BASE, GPU], ids=["base", "gpu"])
def documents(request):
    return rendered(request.param)


@pytest.fixture(params=SERVICES)
def service(request):
    return request.param


@pytest.fixture
def workload(documents, service):
    return of_kind(documents, "Deployment")[service]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_is_valid(documents, version):
    found = {(one["kind"], one["metadata"]["name"]): problems(one, version) for one in documents}
    assert {key: errors for key, errors in found.items() if errors} == {}


@pytest.mark.parametrize("path", [*listed(GPU, "resources"), *listed(GPU, "patches")], ids=lambda path: path.name)
def test_the_overlay_sets_only_existing_fields(path):
    for document in read(path):
        assert problems(document, VERSIONS[-1], is_patch=path in listed(GPU, "patches")) == []


def test_a_misspelt_field_is_found():
    (deployment,) = (one for one in read(BASE / "http-bridge.yaml") if one["kind"] == "Deployment")
    container(deployment)["readynessProbe"] = {}
    assert problems(deployment, VERSIONS[-1])


def test_every_file_is_in_the_kustomization():
    for folder in (BASE, GPU):
        named = {*listed(folder, "resources"), *listed(folder, "patches"), folder / "kustomization.yaml"}
        assert named == set(folder.glob("*.yaml"))


def test_every_selector_matches_the_pods_of_a_workload(documents):
    pods = [one["spec"]["template"]["metadata"]["labels"] for one in of_kind(documents, "Deployment").values()]
    local = [{**one, "metadata": None} for one in documents]
    selectors = [
        one["matchLabels"]
        for key in ("selector", "podSelector", "labelSelector")
        for one in walk(local, key)
        if "matchLabels" in one
    ]
    selectors += [one["spec"]["selector"] for one in of_kind(documents, "Service").values()]
    assert len(selectors) >= 12
    for selector in selectors:
        if selector != {NAME: "prometheus"}:
            assert sum(selector.items() <= labels.items() for labels in pods) == 1, selector


def test_objects_of_a_workload_select_it(documents, service):
    for kind in ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"):
        spec = of_kind(documents, kind)[service]["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        assert selector.get("matchLabels", selector) == {NAME: service}


def test_every_named_port_is_a_port_of_the_container(documents, workload, service):
    ports = {port["name"]: port["containerPort"] for port in container(workload)["ports"]}
    for port in of_kind(documents, "Service")[service]["spec"]["ports"]:
        assert port["targetPort"] in ports
    for rule in of_kind(documents, "NetworkPolicy")[service]["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= ports.keys()
    for probe in (container(workload)[name] for name in PROBES):
        port = probe["grpc"]["port"] if "grpc" in probe else ports[probe["httpGet"]["port"]]
        assert port in ports.values()
    assert workload["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])


def test_the_service_listens_on_the_ports_of_its_container(workload):
    addresses = [
        value for name, value in settings(workload).items() if value.startswith("0.0.0.0:") and "ADDRESS" in name
    ]
    ports = {port["containerPort"] for port in container(workload)["ports"]}
    assert {int(address.rpartition(":")[2]) for address in addresses} == ports


def fields(workload) -> dict[str, str]:
    """Return the container's settings that are not empty. An empty setting is the same as an unset one."""
    return {name.removeprefix("TAILRACE_").lower(): value for name, value in settings(workload).items() if value}


def test_every_setting_exists_and_has_a_valid_value(workload, service):
    assert fields(workload).keys() <= SETTINGS[service].model_fields.keys()
    assert SETTINGS[service](**fields(workload))


def test_a_pod_gets_the_time_to_finish_the_longest_reply(workload, service):
    values = SETTINGS[service](**fields(workload))
    drain = values.shutdown_grace_seconds if service == "inference-server" else values.http_shutdown_grace_seconds
    assert drain >= bridge.Settings.model_fields["request_timeout_seconds"].default
    leaving = container(workload)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(workload)["terminationGracePeriodSeconds"] >= leaving + drain + 10


def test_the_watchdog_may_act_before_the_kubelet(documents):
    probe = container(of_kind(documents, "Deployment")["inference-server"])["livenessProbe"]
    exit_seconds = server.Settings.model_fields["stall_exit_seconds"].default
    assert probe["periodSeconds"] * (probe["failureThreshold"] - 1) > exit_seconds


def test_a_rollout_waits_as_long_as_a_start_may_take(workload):
    probe = container(workload)["startupProbe"]
    assert workload["spec"].get("progressDeadlineSeconds", 600) > probe["periodSeconds"] * probe["failureThreshold"]


def test_probes_and_envoy_check_the_health_of_the_right_service(documents):
    probed = container(of_kind(documents, "Deployment")["inference-server"])
    assert {probed[name]["grpc"]["service"] for name in PROBES} == {SERVICE}
    envoy = yaml.safe_load((ROOT / "deploy" / "envoy" / "envoy.yaml").read_text())
    assert [one["service_name"] for one in walk(envoy, "grpc_health_check")] == [SERVICE]


def test_the_bridge_calls_the_headless_service_of_the_servers(documents):
    host, _, port = settings(of_kind(documents, "Deployment")["http-bridge"])["TAILRACE_GRPC_ADDRESS"].partition(":")
    spec = of_kind(documents, "Service")[host]["spec"]
    assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", False)
    assert int(port) in {one["port"] for one in spec["ports"]}
    # A headless Service translates no ports.
    ports = {one["name"]: one["containerPort"] for one in container(of_kind(documents, "Deployment")[host])["ports"]}
    assert all(ports[one["targetPort"]] == one["port"] for one in spec["ports"])


def test_the_autoscalers_metrics_exist_and_are_adapted(documents):
    (scaler,) = of_kind(documents, "HorizontalPodAutoscaler").values()
    targets = {
        one["pods"]["metric"]["name"]: int(one["pods"]["target"]["averageValue"]) for one in scaler["spec"]["metrics"]
    }
    source = "".join(path.read_text() for path in (ROOT / "inference_server").rglob("*.py"))
    assert targets and all(f'"{name.removeprefix("tailrace_")}"' in source for name in targets)
    (rule,) = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    (pattern,) = re.findall(r'__name__=~"(.+?)"', rule["seriesQuery"])
    assert all(re.fullmatch(pattern, name) for name in targets)


def test_the_autoscaler_adds_a_server_before_the_last_slot_is_taken(documents):
    (scaler,) = of_kind(documents, "HorizontalPodAutoscaler").values()
    server = of_kind(documents, "Deployment")[scaler["spec"]["scaleTargetRef"]["name"]]
    targets = {
        one["pods"]["metric"]["name"]: int(one["pods"]["target"]["averageValue"]) for one in scaler["spec"]["metrics"]
    }
    assert targets["tailrace_requests_running"] < int(settings(server)["TAILRACE_MAX_RUNNING_SEQS"])
    # Two controllers of the same number of replicas would undo each other's changes.
    assert "replicas" not in server["spec"]


def test_containers_have_no_unnecessary_rights(workload):
    spec, only = pod(workload), container(workload)
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert str(spec["securityContext"]["runAsUser"]) in re.findall(r"useradd .*--uid (\d+)", dockerfile)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_every_volume_is_mounted_and_every_mount_has_its_volume(workload):
    mounts = {mount["name"] for mount in container(workload)["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod(workload)["volumes"]}


def test_files_named_by_settings_are_on_a_volume_or_in_the_image(workload):
    mounts = [mount["mountPath"] for mount in container(workload)["volumeMounts"]]
    for name, value in settings(workload).items():
        if value.startswith("/app/"):
            assert (ROOT / value.removeprefix("/app/")).is_file(), name
        elif value.startswith("/"):
            assert any(value.startswith(f"{mount}/") for mount in mounts), name


def test_the_servers_caches_are_on_its_volume(documents):
    mounts = [
        mount["mountPath"] for mount in container(of_kind(documents, "Deployment")["inference-server"])["volumeMounts"]
    ]
    dockerfile = (ROOT / "Dockerfile").read_text()
    folders = dict(re.findall(r"(TAILRACE_CACHE_DIR|HF_HOME|TRITON_CACHE_DIR)=(\S+)", dockerfile))
    assert len(folders) == 3
    assert all(any(folder.startswith(f"{mount}/") for mount in mounts) for folder in folders.values())


def test_images_are_of_this_version(workload, service):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert container(workload)["image"] == f"tailrace/{service}:{version}"
