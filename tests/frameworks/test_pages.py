"""Follows the pages of docs/frameworks: runs their commands as written, and compares what a reader would see."""

import json
import re

import pytest

from tests.frameworks.pages import PAGES, Block, blocks, contains, missing_line, names

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(300)]

# Two pages have tests of their own in this folder.
WITH_NODE = [name for name in names() if name not in ("github-actions", "pytest")]
# wrangler asks for the location of the request.cf object, and uses a fixed one offline.
OPTIONAL_HOSTS = {"workers.cloudflare.com"}


@pytest.mark.parametrize("page", WITH_NODE)
def test_the_commands_of_a_page_do_what_it_says(page, reader, traffic):
    project, terminal = reader(page)
    reached = len(traffic.hosts)
    output = None
    for block in blocks(page):
        if block.file is not None:
            assert contains(project / block.file, block.text), f"{block}: not in {block.file}"
        elif block.language == "sh":
            terminal.run(block)
            output = block
        elif block.language == "":
            assert output is not None, f"{block}: output without a command"
            shown = terminal.server_output if output.serves else terminal.output
            line = missing_line(block.text, shown)
            assert line is None, f"{block}: {line!r} is not in the output\n{shown}\n{terminal.server_output}"
    assert terminal.close() == []
    assert set(traffic.hosts[reached:]) <= OPTIONAL_HOSTS


@pytest.mark.parametrize("page", WITH_NODE)
def test_a_page_names_the_versions_of_its_example(page):
    text = (PAGES / f"{page}.md").read_text()
    project = PAGES.parents[1] / "examples" / "frameworks" / page
    package = json.loads((project / "package.json").read_text())
    pins = package.get("dependencies", {}) | package["devDependencies"]
    for name, version in pins.items():
        assert re.search(rf"{re.escape(name)} {re.escape(version)}\b", text), f"{name} {version} is not in the page"


@pytest.mark.parametrize("command", ["npm run build", "npm run deploy", "npx vite build"])
def test_the_command_refuses_to_prepare_a_deployment_with_the_local_binding(command, reader):
    project, terminal = reader("vite")
    terminal.execute("npm install --save-dev ../tailrace/build/tailrace-0.1.0.tgz")
    terminal.execute(f"! npx tailrace dev -- {command}")
    assert re.search(
        r'^tailrace: tailrace dev is for dev servers, and "[^"]*vite build[^"]*" prepares a deploy', terminal.output
    )
    assert not list(project.glob(".tailrace-*"))


def test_nitro_without_nuxt_has_a_local_binding(reader):
    project, terminal = reader("nuxt")
    (project / "nuxt.config.ts").unlink()
    (project / "nitro.config.ts").write_text(
        'export default { preset: "cloudflare_module", compatibilityDate: "2026-08-01" };\n'
    )
    (project / "server" / "api").rename(project / "routes")
    terminal.execute("npm install --save-dev ../tailrace/build/tailrace-0.1.0.tgz")
    command = "npx tailrace dev -- npx nitropack dev"
    assert f"`{command}`" in (PAGES / "nuxt.md").read_text()
    terminal.run(Block("nuxt", 0, "sh", f"{command}\n", None))
    terminal.run(Block("nuxt", 0, "sh", 'curl -sN "http://localhost:3000/ask?prompt=hi"\n', None))
    assert "data: [DONE]" in terminal.output, terminal.output + terminal.server_output
    assert terminal.close() == []
