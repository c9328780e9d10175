"""`tailrace dev` with wrangler of two generations: the binding in every place, signals, exit codes, orphans."""

import json
import signal

import pytest

from tests.npm.conftest import make_project
from tests.npm.support import streamed, wait_until
from tests.support.processes import ROOT

pytestmark = pytest.mark.npm

DEV = ("tailrace", "dev", "--", "wrangler", "dev", "-c", "wrangler.jsonc", "-c", "other.toml", "--port", "PORT")


def test_the_binding_works_in_every_place_without_a_login_or_a_warning(project, url):
    before = (project.folder / "wrangler.jsonc").read_bytes()
    with project.serving(*DEV, TAILRACE_URL=url) as running:
        answer = running.get("run").json()
        assert "Tokyo" in answer["reply"]["response"] and answer["reply"]["usage"]["completion_tokens"] > 0
        assert (answer["class"], len(answer["id"])) == ("Ai", 36)
        stream = running.get("stream")
        assert stream.headers["content-type"] == "text/event-stream" and "Tokyo" in streamed(stream.text)
        error = running.get("error").json()
        assert (error["name"], error["status"]) == ("AiError", 400) and error["message"].startswith("5007: ")
        for place in ("object", "workflow", "service"):
            assert "Tokyo" in running.get(place).json()["reply"]["response"], place
        assert len(project.copies()) == 2
        assert running.stop() in (0, 128 + signal.SIGTERM)
    assert project.copies() == []
    assert (project.folder / "wrangler.jsonc").read_bytes() == before
    output = running.output()
    assert "experimental" not in output and "directly supported" not in output and "login" not in output


def test_a_changed_configuration_reaches_the_running_worker(new_project, url):
    config = new_project.folder / "wrangler.jsonc"
    with new_project.serving("tailrace", "dev", "--port", "PORT", TAILRACE_URL=url) as running:
        assert running.get("greeting").text == "hello"
        valid = config.read_text()
        config.write_text(valid.replace('"hello"', '"good evening"'))
        wait_until(lambda: running.get("greeting").text == "good evening")
        config.write_text(valid.replace('"hello"', '"hello'))
        wait_until(lambda: "wrangler.jsonc:" in running.output())
        assert running.get("greeting").text == "good evening"
        assert "The last valid configuration stays in use." in running.output()


def test_an_environment_and_a_script_use_the_local_binding(new_project, url):
    package = '{ "type": "module", "scripts": { "start-it": "wrangler dev --env staging" } }'
    (new_project.folder / "package.json").write_text(package)
    command = ("tailrace", "dev", "--", "npm", "run", "start-it", "--", "--port", "PORT")
    with new_project.serving(*command, TAILRACE_URL=url) as running:
        assert running.get("greeting").text == "hello, staging"
        assert "Tokyo" in running.get("run").json()["reply"]["response"]


def test_git_never_lists_a_copy(new_project, url):
    assert new_project.run("git", "init", "--quiet").code == 0
    listed = ("git", "status", "--porcelain", "--untracked-files=all", "--", "*.json*")
    done = new_project.run("tailrace", "dev", "--", *listed, TAILRACE_URL=url)
    assert done.code == 0 and "?? wrangler.jsonc" in done.output and ".tailrace-" not in done.output
    assert (new_project.folder / ".git/info/exclude").read_text().count(".tailrace-*") == 1


def test_the_binding_in_a_configuration_of_its_own_needs_no_command(new_project, url):
    plugin = {"package": "tailrace", "name": "tailrace"}
    binding = {"name": "AI", "type": "local-ai", "dev": {"plugin": plugin, "options": {"url": url}}}
    config = json.loads((new_project.folder / "suite.jsonc").read_text())
    own = {name: value for name, value in config.items() if name == "durable_objects"}
    config["env"] = {"local": {**own, "unsafe": {"bindings": [binding]}}}
    (new_project.folder / "suite.jsonc").write_text(json.dumps(config))
    command = ("wrangler", "dev", "-c", "suite.jsonc", "--env", "local", "--port", "PORT")
    with new_project.serving(*command, path="/api/run") as running:
        assert "Tokyo" in running.get("run").json()["reply"]["response"]


def test_an_exit_code_and_other_commands_pass_through(new_project, url):
    script = "console.log(process.env.TAILRACE_URL, process.env.TAILRACE_TOKEN); process.exit(7)"
    done = new_project.run("tailrace", "dev", "--", "node", "-e", script, TAILRACE_URL=url)
    assert (done.code, done.output.splitlines()[-1]) == (7, f"{url} local-token")
    assert new_project.copies() == []


@pytest.mark.parametrize("script", ["wrangler dev & node -v", "node -v && wrangler dev"])
def test_a_script_with_several_programs_is_refused_with_the_way_out(new_project, url, script):
    (new_project.folder / "package.json").write_text(json.dumps({"type": "module", "scripts": {"dev": script}}))
    done = new_project.run("tailrace", "dev", "--", "npm", "run", "dev", TAILRACE_URL=url)
    assert done.code == 1 and "write tailrace dev -- before wrangler dev there" in done.output
    assert new_project.copies() == []


def test_a_configuration_after_a_script_is_replaced_alone(new_project, url):
    package = {"type": "module", "scripts": {"help": "wrangler dev --help"}}
    (new_project.folder / "package.json").write_text(json.dumps(package))
    command = ("tailrace", "dev", "--", "npm", "run", "help", "--", "-c", "other.toml")
    done = new_project.run(*command, TAILRACE_URL=url)
    (line,) = [line for line in done.output.splitlines() if line.startswith("> wrangler dev --help")]
    assert line.count(" -c ") == 1 and ".tailrace-" in line


def test_a_command_without_a_configuration_is_reported_and_runs(new_project, url):
    (new_project.folder / "wrangler.jsonc").unlink()
    done = new_project.run("tailrace", "dev", "--", "node", "-e", "process.exit(7)", TAILRACE_URL=url)
    assert done.code == 7 and "There is no wrangler configuration in" in done.output


def test_a_configuration_may_begin_with_a_byte_order_mark(new_project, url):
    (new_project.folder / "wrangler.jsonc").unlink()
    (new_project.folder / "wrangler.toml").write_text('\ufeffname = "x"\n')
    done = new_project.run("tailrace", "dev", "--", "node", "-e", "process.exit(7)", TAILRACE_URL=url)
    assert done.code == 7, done.output


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--port=3000", "--port=3000"),
        ("C:\\My Project\\.tailrace-1-0.wrangler.json", '"C:\\My Project\\.tailrace-1-0.wrangler.json"'),
        ("a&b", '"a&b"'),
        ("", '""'),
        ('say "hi"', '"say \\"hi\\""'),
        ("end \\", '"end \\\\"'),
    ],
)
def test_words_are_quoted_for_the_shell_of_windows(new_project, word, expected):
    """Windows itself does not run here: this compares the words with the rules of its C runtime."""
    source = (ROOT / "npm/src/cli/quoted.ts").as_uri()
    code = f"import({json.dumps(source)}).then(({{ quoted }}) => process.stdout.write(quoted({json.dumps(word)})))"
    done = new_project.run("node", "--disable-warning=ExperimentalWarning", "-e", code)
    assert done.output == expected


@pytest.mark.parametrize("words", [["deploy"], ["versions", "upload"], ["pages", "dev"]])
def test_a_copy_is_never_deployed(new_project, url, words):
    done = new_project.run("tailrace", "dev", "--", "wrangler", *words, TAILRACE_URL=url)
    assert done.code == 1 and "tailrace: " in done.output and "wrangler" in done.output
    assert new_project.copies() == []


@pytest.fixture
def old_project(packages, tmp_path):
    """Return a project with a program `wrangler` that has the version 3, and prints its arguments and the address of AI."""
    project = make_project(packages("new"), tmp_path / "project")
    own, shared = project.folder / "node_modules", packages("new") / "node_modules"
    own.unlink()
    (own / ".bin").mkdir(parents=True)
    (own / "wrangler").mkdir()
    (own / "wrangler/package.json").write_text('{ "name": "wrangler", "version": "3.114.0" }')
    (own / "tailrace").symlink_to(shared / "tailrace")
    (own / ".bin/tailrace").symlink_to(shared / ".bin/tailrace")
    (own / ".bin/wrangler").write_text('#!/bin/sh\necho "wrangler: $@ at $CLOUDFLARE_API_BASE_URL"\n')
    (own / ".bin/wrangler").chmod(0o755)
    return project


@pytest.mark.parametrize("words", [["dev"], ["dev", "--env", "staging"], ["pages", "dev", "public"]])
def test_wrangler_3_gets_the_address_in_variables(old_project, url, words):
    done = old_project.run("tailrace", "dev", "--", "wrangler", *words, TAILRACE_URL=url)
    assert done.code == 0 and f"wrangler: {' '.join(words)} at {url}/client/v4" in done.output


@pytest.mark.parametrize(
    "script",
    ["wrangler deploy --env dev", "node -v && npx wrangler versions upload", "wrangler pages deploy"],
)
def test_wrangler_3_deploys_nothing_either(old_project, url, script):
    package = {"type": "module", "scripts": {"deploy": script, "dev": "node -v && wrangler dev"}}
    (old_project.folder / "package.json").write_text(json.dumps(package))
    for command in ([*script.split()], ["npm", "run", "deploy"]):
        if "&&" in command:
            continue
        done = old_project.run("tailrace", "dev", "--", *command, TAILRACE_URL=url)
        assert done.code == 1 and "tailrace dev runs wrangler dev only" in done.output
        assert "wrangler:" not in done.output
    assert old_project.run("tailrace", "dev", "--", "npm", "run", "dev", TAILRACE_URL=url).code == 0


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"wrangler.jsonc": '{ "name": '}, "wrangler.jsonc:1:11: the JSON is invalid (value expected)."),
        ({"wrangler.jsonc": None, "wrangler.toml": "name = x"}, "wrangler.toml:1:"),
        ({"wrangler.jsonc": None}, "There is no wrangler.jsonc, wrangler.json or wrangler.toml in"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(new_project, url, files, sentence):
    for name, text in files.items():
        path = new_project.folder / name
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
    done = new_project.run("tailrace", "dev", TAILRACE_URL=url)
    assert done.code == 1 and sentence in done.output and len(done.output.splitlines()) == 1
    assert new_project.copies() == []
