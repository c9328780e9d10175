"""A running stack for every test of this folder, with replies of full length, and its address as clients want it."""

import re
from collections.abc import Iterator

import pytest

from inference_server.config import DEFAULT_CATALOG
from tests.e2e.stack import Stack

ACCOUNT = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    # All entries in one precision share an engine.
    catalog = re.sub(r'^precision = ".*"', 'precision = "float16"', DEFAULT_CATALOG.read_text(), flags=re.MULTILINE)
    stack = Stack(tmp_path_factory.mktemp("stack"), catalog)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def api(stack: Stack) -> str:
    """In place of https://api.cloudflare.com/client/v4."""
    return f"http://{stack.http_address}/client/v4"
