"""The workflows for GitHub Actions: GitHub's own parser accepts them, and their steps succeed against a running server."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.clients.node_programs import environment
from tests.frameworks.pages import EXAMPLES, blocks
from tests.frameworks.projects import copy_project

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(240)]

WORKFLOWS = sorted((EXAMPLES / "github-actions").glob("*.yml"))


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    return copy_project(Path(__file__).parent / "node", tmp_path_factory.mktemp("parser"))


def parsed(parser, path):
    command = ["node", "check-workflow.mjs", str(path)]
    return subprocess.run(command, cwd=parser, env=environment(), capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_githubs_parser_accepts_the_workflow_of_the_page(parser, path):
    done = parsed(parser, path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["jobs"][0]["steps"]
    [block] = [each for each in blocks("github-actions") if each.file == f".github/workflows/{path.name}"]
    assert block.text == path.read_text()


def test_githubs_parser_refuses_a_workflow_with_a_wrong_key(parser, tmp_path):
    (tmp_path / "wrong.yml").write_text(WORKFLOWS[-1].read_text().replace("ports:", "port:"))
    done = parsed(parser, tmp_path / "wrong.yml")
    assert done.returncode == 1 and "Unexpected value 'port'" in done.stderr


def test_the_steps_of_the_job_with_a_service_succeed(reader):
    # npm needs the registry for an exact lock file: it also lists packages of other platforms.
    _, terminal = reader("vitest", online=True)
    for block in blocks("github-actions"):
        if block.language == "sh":
            terminal.run(block)
    job = yaml.safe_load((EXAMPLES / "github-actions" / "service.yml").read_text())["jobs"]["test"]
    # The variable of the job names the service's published port. In this test, the running stack replaces the service.
    assert job["env"] == {"TAILRACE_URL": "http://localhost:8787"}
    assert job["services"]["tailrace"]["ports"] == ["8787:8787"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["npm ci", "npm test"]
    for command in commands:
        terminal.execute(command)
    assert "4 passed" in terminal.output
    assert terminal.close() == []
