"""The page about pytest: its tests pass with the plugin of the Python package, and its snippets are in the example."""

import os
import sys
from importlib.metadata import entry_points

import pytest

from tests.frameworks.pages import EXAMPLES, blocks, contains, missing_line
from tests.frameworks.projects import copy_project
from tests.frameworks.terminal import Terminal
from tests.support.processes import ROOT, free_address

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(240)]


def test_a_server_with_tokens_gets_that_of_the_variable(tmp_path, stack):
    address = free_address()
    stack.spawn("http_bridge", name=address, TAILRACE_HTTP_ADDRESS=address, TAILRACE_API_TOKENS="local-token")
    stack.wait_until_answered(f"http://{address}/readyz")
    terminal = opened(tmp_path, TAILRACE_URL=f"http://{address}", TAILRACE_TOKEN="local-token")
    try:
        terminal.execute("pytest")
        assert "3 passed" in terminal.output
    finally:
        stack.process(address).terminate()
        assert terminal.close() == []


def opened(folder, **settings):
    """Return a terminal in a copy of the example."""
    project = copy_project(EXAMPLES / "pytest", folder)
    programs = folder / "bin"
    programs.mkdir()
    (programs / "pytest").write_text(f'#!/bin/sh\nexec {sys.executable} -m pytest "$@"\n')
    (programs / "pytest").chmod(0o755)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("TAILRACE_", "PYTEST_"))}
    settings = (
        own | settings | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    )
    if not entry_points(group="pytest11", name="tailrace"):
        # The environment was set up before the package had a plugin.
        settings["PYTEST_PLUGINS"] = "tailrace.pytest_plugin"
    return Terminal(project, settings)


def test_the_commands_of_the_page_do_what_it_says(tmp_path):
    terminal = opened(tmp_path)
    project = tmp_path / "pytest"
    try:
        for block in blocks("pytest"):
            if block.file is not None:
                assert contains(project / block.file, block.text), f"{block}: not in {block.file}"
            elif block.language == "sh":
                terminal.run(block)
            elif block.language == "":
                line = missing_line(block.text, terminal.output)
                assert line is None, f"{block}: {line!r} is not in the output\n{terminal.output}"
    finally:
        assert terminal.close() == []
