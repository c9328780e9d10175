"""The scripted bridge of tests/http_bridge, and the packages of the Node proxy."""

import pytest

from tests.clients.node_programs import install
from tests.http_bridge.conftest import backend, servicer, short_pauses, start_bridge
from tests.proxies.programs import ROOT

__all__ = ["backend", "packages", "servicer", "short_pauses", "start_bridge"]


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    return install(ROOT / "tests" / "proxies" / "node", tmp_path_factory.mktemp("proxy") / "node")
