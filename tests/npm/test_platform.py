"""getPlatformProxy of `tailrace/platform` with two generations of wrangler, and with each form of a configuration."""

import json

import pytest

from tests.npm.support import streamed

pytestmark = pytest.mark.npm

JSON = '{ "name": "p", "compatibility_date": "2026-04-01", "ai": { "binding": "AI" } }'
TOML = 'name = "p"\ncompatibility_date = "2026-04-01"\n\n[ai] # a comment\nbinding = "AI"\n'


def test_the_platform_has_a_local_binding(project, url):
    check(project, url, "wrangler.jsonc")


@pytest.mark.parametrize(("name", "text"), [("wrangler.json", JSON), ("wrangler.toml", TOML)])
def test_every_form_of_a_configuration_is_read(new_project, url, name, text):
    (new_project.folder / name).write_text(text)
    check(new_project, url, name)


def test_a_wrong_configuration_starts_no_server(new_project):
    (new_project.folder / "wrangler.jsonc").write_text('{ "name": ')
    # A look for a server would fail with another sentence.
    done = new_project.run("node", "platform.mjs", "wrangler.jsonc", TAILRACE_URL="http://127.0.0.1:1")
    assert done.code == 1 and "the JSON is invalid" in done.output
    assert new_project.copies() == []


def check(project, url, config):
    done = project.run("node", "platform.mjs", config, TAILRACE_URL=url)
    assert done.code == 0, done.output
    answer = json.loads(done.output.splitlines()[-1])
    assert "Tokyo" in answer["response"] and "Tokyo" in streamed(answer["text"])
    assert answer["message"].startswith("5007: ") and len(answer["id"]) == 36
    assert "experimental" not in done.output
    assert project.copies() == []
