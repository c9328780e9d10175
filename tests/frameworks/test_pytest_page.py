"""The page about pytest: its tests pass with the plugin of the Python package, and its snippets are in the example."""

import os
import sys
from importlib.metadata import entry_points

import pytest

from tests.frameworks.pages import EXAMPLES, blocks, contains, missing_line
from tests.frameworks.projects import copy_project
from tests.frameworks.terminal import Terminal
from tests.support.processes import ROOT

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(240)]


def test_the_commands_of_the_page_do_what_it_says(tmp_path):
    project = copy_project(EXAMPLES / "pytest", tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "pytest").write_text(f'#!/bin/sh\nexec {sys.executable} -m pytest "$@"\n')
    (programs / "pytest").chmod(0o755)
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("TAILRACE_", "PYTEST_"))}
    settings |= {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if not entry_points(group="pytest11", name="tailrace"):
        # The environment was set up before the package had a plugin.
        settings["PYTEST_PLUGINS"] = "tailrace.pytest_plugin"
    terminal = Terminal(project, settings)
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
