"""`tailrace init`: the difference, the question, the change, and what is left alone."""

import json
import os
import subprocess

import pytest

pytestmark = pytest.mark.npm

PACKAGE = """{
    "name": "project",
    "scripts": {
        "dev": "wrangler dev --port 3000",
        "deploy": "wrangler deploy",
        "both": "tsc && wrangler dev"
    }
}
"""
VITE = """import { defineConfig } from 'vite'
import { cloudflare } from '@cloudflare/vite-plugin'

export default defineConfig({
  plugins: [cloudflare()],
})
"""
VITEST = """import { cloudflareTest } from "@cloudflare/vitest-plugin";
import { defineConfig } from "vitest/config";

export default defineConfig({
  plugins: [
    cloudflareTest({
      wrangler: { configPath: "./suite.jsonc" }, // a } in a comment
    }),
  ],
});
"""


@pytest.fixture
def plain(new_project):
    """Return a project with a script for wrangler, and without configurations of Vite and vitest."""
    for path in new_project.folder.glob("*.config.mjs"):
        path.unlink()
    (new_project.folder / "package.json").write_text(PACKAGE)
    return new_project


def texts(project):
    return {path.name: path.read_text() for path in project.folder.iterdir() if path.is_file()}


def test_scripts_that_run_wrangler_dev_are_changed_once(plain):
    shown = plain.run("tailrace", "init", "--yes")
    assert shown.code == 0, shown.output
    assert '-        "dev": "wrangler dev --port 3000",' in shown.output
    assert '+        "dev": "tailrace dev -- wrangler dev --port 3000",' in shown.output
    changed = (plain.folder / "package.json").read_text()
    assert changed == PACKAGE.replace('"wrangler dev --port', '"tailrace dev -- wrangler dev --port')
    again = plain.run("tailrace", "init", "--yes")
    by_hand = 'By hand: in package.json, write tailrace dev -- before wrangler dev in "both".\n'
    assert (again.code, again.output) == (0, by_hand)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("tailrace dev -- wrangler dev", "This project uses the local AI binding already: nothing to change."),
        ("vite dev", "Start the dev server with npx tailrace dev -- npm run dev."),
    ],
)
def test_a_project_without_anything_to_change_is_described_as_it_is(plain, script, sentence):
    (plain.folder / "package.json").write_text(json.dumps({"scripts": {"dev": script}}))
    done = plain.run("tailrace", "init", "--yes")
    assert (done.code, done.output.strip().endswith(sentence)) == (0, True), done.output


def test_a_link_and_the_line_ends_of_windows_stay(plain):
    real = plain.folder.parent / "package.json"
    real.write_bytes(b'{\r\n  "name": "project"\r\n}\r\n')
    (plain.folder / "package.json").unlink()
    (plain.folder / "package.json").symlink_to(real)
    assert plain.run("tailrace", "init", "--yes").code == 0
    assert (plain.folder / "package.json").is_symlink()
    text = real.read_bytes()
    assert b'"dev": "tailrace dev"' in text and text.count(b"\n") == text.count(b"\r\n")


def test_without_an_answer_nothing_changes(plain):
    before = texts(plain)
    done = plain.run("tailrace", "init")
    assert done.code == 1 and "Run it with --yes." in done.output and "+++ package.json" in done.output
    assert texts(plain) == before


@pytest.mark.parametrize("key", [b"\x03", b"\x04", b"\r"], ids=["Ctrl-C", "Ctrl-D", "Enter"])
def test_a_declined_question_changes_nothing(plain, key):
    before = texts(plain)
    master, terminal = os.openpty()
    process = subprocess.Popen(
        ["tailrace", "init"],
        cwd=plain.folder,
        env=plain.environment(),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(master, 4096)
    os.write(master, key)
    while b"Nothing was changed.\r\n" not in shown:
        shown += os.read(master, 4096)
    assert process.wait(30) == 1
    os.close(master)
    assert b"Error" not in shown and texts(plain) == before


def test_vite_and_vitest_get_their_plugins(plain, url):
    (plain.folder / "package.json").write_text('{ "name": "project", "type": "module" }\n')
    (plain.folder / "vite.config.mjs").write_text(VITE)
    (plain.folder / "vitest.config.mjs").write_text(VITEST)
    (plain.folder / "ai.test.mjs").rename(plain.folder / "some.test.mjs")
    assert plain.run("tailrace", "init", "--yes").code == 0
    changed = texts(plain)
    assert changed["vite.config.mjs"] == VITE.replace(
        "'@cloudflare/vite-plugin'\n", "'@cloudflare/vite-plugin'\nimport { tailrace } from 'tailrace/vite'\n"
    ).replace("[cloudflare()", "[tailrace(), cloudflare()")
    assert "scripts" not in json.loads(changed["package.json"])
    assert "already" in plain.run("tailrace", "init").output
    done = plain.run("vitest", "run", "--config", "vitest.config.mjs", TAILRACE_URL=url)
    assert done.code == 0 and "4 passed" in done.output, done.output


def test_what_cannot_be_changed_safely_is_explained(plain):
    config = "import * as cf from '@cloudflare/vite-plugin'\nexport default { plugins: cf.cloudflare() }\n"
    (plain.folder / "vite.config.mjs").write_text(config)
    done = plain.run("tailrace", "init", "--yes")
    assert "By hand: in vite.config.mjs, " in done.output
    assert (plain.folder / "vite.config.mjs").read_text() == config


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("package.json", '{ "scripts": { ', "package.json is invalid"),
        ("package.json", None, "There is no package.json in"),
        ("wrangler.jsonc", '{ "name": "x" }', "has no AI binding"),
        ("wrangler.jsonc", "{", "the JSON is invalid"),
    ],
)
def test_bad_input_changes_nothing(plain, name, text, sentence):
    path = plain.folder / name
    path.unlink()
    if text is not None:
        path.write_text(text)
    before = texts(plain)
    done = plain.run("tailrace", "init", "--yes")
    assert done.code == 1 and sentence in done.output and len(done.output.splitlines()) == 1
    assert texts(plain) == before
