"""Runs Envoy with the project's configuration before two real servers, on ports of this machine."""

import asyncio
import json
import os
import re
import shutil
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from inference_server.settings.models import DEFAULT_CATALOG
from tailrace.v1 import inference_pb2_grpc
from tests.deploy.names import Names, name_server
from tests.reliability.watch import metrics
from tests.support.processes import ROOT, Process, free_address, process

CONFIGURATION = ROOT / "deploy" / "envoy" / "envoy.yaml"
MODEL = "@cf/huggingfacetb/smollm2-135m-instruct"
# Extra seconds for each forward pass, so that replies last long enough for the tests.
STEP_SECONDS = 0.03


def envoy_binary() -> str:
    """Return Envoy's path: ENVOY, beside this Python, or from PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(os.environ.get("ENVOY", "envoy"), path=path)
    assert found, "there is no Envoy here: make test-deploy installs it"
    return found


@dataclass
class Replica:
    """A server that a test can slow down, hang and stop."""

    process: Process
    address: str
    metrics_address: str
    fault: Path

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0]

    async def metric(self, name: str) -> float:
        return (await asyncio.to_thread(metrics, self.metrics_address)).get(f"tailrace_{name}", 0.0)

    def set_fault(self, words: str) -> None:
        # Replaced atomically, because the server reads it before each pass.
        new = self.fault.with_suffix(".new")
        new.write_text(words)
        new.rename(self.fault)


@dataclass
class Front:
    """Envoy before its replicas, with a client of it."""

    replicas: list[Replica]
    stub: "inference_pb2_grpc.InferenceServiceAsyncStub"
    admin_address: str
    names: Names

    async def wait_until_healthy(self, number: int, *, seconds: float) -> None:
        """Wait until Envoy sends new streams to `number` servers."""
        name = "cluster.inference_servers.membership_healthy"
        async with asyncio.timeout(seconds):
            while json.loads(await self.admin(f"/stats?format=json&filter=^{name}$"))["stats"][0]["value"] != number:
                await asyncio.sleep(0.05)

    async def admin(self, path: str, method: str = "GET") -> bytes:
        """Return the answer of Envoy's administration interface."""
        request = urllib.request.Request(f"http://{self.admin_address}{path}", method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def ask() -> bytes:
            with opener.open(request, timeout=5) as answer:
                return answer.read()

        return await asyncio.to_thread(ask)


def no_fault(folder: Path) -> Path:
    """Return the file for faulty_server's faults, in a new folder."""
    folder.mkdir()
    fault = folder / "fault"
    fault.write_text("")
    return fault


@asynccontextmanager
async def replica(folder: Path, catalog: Path, address: str) -> AsyncIterator[Replica]:
    fault = no_fault(folder)
    metrics_address = free_address()
    settings = {"grpc_address": address, "metrics_address": metrics_address, "catalog": str(catalog)}
    settings |= {"max_running_seqs": "8", "stall_seconds": "1", "stall_exit_seconds": "600", "fault_file": str(fault)}
    async with process("tests.reliability.faults.faulty_server", **settings) as started:
        await started.line_with("ready after", seconds=110)
        yield Replica(started, address, metrics_address, fault)


def configuration_for(*, servers_port: int, names_port: int, listener: str, admin: str) -> dict[str, Any]:
    """Return the project's configuration with only this machine's ports and name server changed."""

    def socket_address(address: str) -> dict[str, Any]:
        host, _, port = address.rpartition(":")
        return {"socket_address": {"address": host, "port_value": int(port)}}

    configuration = yaml.safe_load(CONFIGURATION.read_text())
    configuration["admin"]["address"] = socket_address(admin)
    configuration["static_resources"]["listeners"][0]["address"] = socket_address(listener)
    (cluster,) = configuration["static_resources"]["clusters"]
    ((endpoint,),) = (one["lb_endpoints"] for one in cluster["load_assignment"]["endpoints"])
    endpoint["endpoint"]["address"]["socket_address"]["port_value"] = servers_port
    cluster["cluster_type"]["typed_config"]["typed_dns_resolver_config"] = {
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [socket_address(f"127.0.0.1:{names_port}")],
            "dns_resolver_options": {"no_default_search_domain": True},
        },
    }
    return configuration


@asynccontextmanager
async def envoy(configuration: dict[str, Any], folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    path = folder / "envoy.yaml"
    path.write_text(yaml.safe_dump(configuration))
    with (folder / "envoy.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            envoy_binary(),
            "--use-dynamic-base-id",
            "--concurrency",
            "2",
            "--drain-time-s",
            "2",
            "-c",
            path,
            stdout=log,
            stderr=log,
        )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """Start Envoy before two servers that host only the default catalog's int4 entry, which loads in seconds."""
    catalog = tmp_path / "catalog.toml"
    (entry,) = re.findall(rf'\[\[models\]\]\nname = "{MODEL}"\n(?:.+\n)+', DEFAULT_CATALOG.read_text())
    catalog.write_text(entry)
    listener, admin = free_address(), free_address()
    # As with a headless Service, several addresses have the same port.
    port = int(free_address().rpartition(":")[2])
    addresses = ["127.0.0.2", "127.0.0.3"]
    async with AsyncExitStack() as stack:
        starts = (replica(tmp_path / host, catalog, f"{host}:{port}") for host in addresses)
        replicas = await asyncio.gather(*(stack.enter_async_context(start) for start in starts))
        names = await stack.enter_async_context(name_server())
        names.addresses = addresses
        configuration = configuration_for(servers_port=port, names_port=names.port, listener=listener, admin=admin)
        await stack.enter_async_context(envoy(configuration, tmp_path))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(listener))
        front = Front(replicas, inference_pb2_grpc.InferenceServiceStub(channel), admin, names)
        await channel.channel_ready()
        await front.wait_until_healthy(2, seconds=10)
        yield front
