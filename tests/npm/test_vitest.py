"""The helper for vitest, with @cloudflare/vitest-plugin (new) and @cloudflare/vitest-pool-workers (old)."""

import pytest

from tests.support.processes import free_address

pytestmark = pytest.mark.npm


def test_a_suite_runs_with_the_helper(project, url):
    done = project.run("vitest", "run", TAILRACE_URL=url)
    assert done.code == 0 and "4 passed" in done.output, done.output
    assert "experimental" not in done.output
    assert project.copies() == []


def test_a_suite_runs_without_any_package(project, stack):
    http, binding = free_address(), free_address()
    stack.spawn("http_bridge", name=http, TAILRACE_HTTP_ADDRESS=http, TAILRACE_BINDING_ADDRESS=binding)
    stack.wait_until_answered(f"http://{http}/readyz")
    done = project.run("vitest", "run", "--config", "bare.vitest.config.mjs", BINDING=f"http://{binding}/")
    assert done.code == 0 and "4 passed" in done.output, done.output
