"""`tailrace dev` with wrangler of two generations: the binding in every place, signals, exit codes, orphans."""

import signal

import pytest

from tests.npm.support import streamed, wait_until

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


def test_an_exit_code_and_other_commands_pass_through(new_project, url):
    script = "console.log(process.env.TAILRACE_URL, process.env.TAILRACE_TOKEN); process.exit(7)"
    done = new_project.run("tailrace", "dev", "--", "node", "-e", script, TAILRACE_URL=url)
    assert (done.code, done.output.splitlines()[-1]) == (7, f"{url} local-token")
    assert new_project.copies() == []


@pytest.mark.parametrize("words", [["deploy"], ["versions", "upload"], ["pages", "dev"]])
def test_a_copy_is_never_deployed(new_project, url, words):
    done = new_project.run("tailrace", "dev", "--", "wrangler", *words, TAILRACE_URL=url)
    assert done.code == 1 and "tailrace: " in done.output and "wrangler" in done.output
    assert new_project.copies() == []


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
