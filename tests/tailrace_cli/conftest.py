"""Environment of the command where no service runs."""

import os

import pytest

from tests.support.processes import free_address


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Variables without the developer's own settings; both addresses are free."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TAILRACE_")}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "TAILRACE_HTTP_ADDRESS": free_address(),
        "TAILRACE_GRPC_ADDRESS": free_address(),
        "TAILRACE_CACHE_DIR": str(tmp_path / "cache"),
    }
