"""A deploy is the same with this package as without: the binding is Cloudflare's own."""

import pytest

pytestmark = pytest.mark.npm


def test_a_deploy_has_the_plain_binding_after_init_and_dev(project, url):
    deploy = ("wrangler", "deploy", "--dry-run", "--outdir", "../out", "-c", "wrangler.jsonc")
    before = project.run(*deploy)
    assert before.code == 0 and "env.AI" in before.output, before.output
    config = (project.folder / "wrangler.jsonc").read_bytes()
    assert project.run("tailrace", "init", "--yes").code == 0
    assert project.run("tailrace", "dev", "--", "node", "-e", "0", TAILRACE_URL=url).code == 0
    after = project.run(*deploy)
    assert without_banner(after.output) == without_banner(before.output)
    (binding,) = [line.split() for line in after.output.splitlines() if line.startswith("env.AI")]
    assert binding[1] == "AI"
    assert (project.folder / "wrangler.jsonc").read_bytes() == config


def without_banner(output):
    """Return the output without the lines that name wrangler's version and the newest one."""
    return [line for line in output.splitlines() if "wrangler 4." not in line and not line.startswith("──")]
