"""The Vite plugin with two generations of @cloudflare/vite-plugin: `vite dev` is local, `vite build` is unchanged."""

import pytest

from tests.npm.support import streamed, wait_until

pytestmark = pytest.mark.npm

WITHOUT = """
import { cloudflare } from "@cloudflare/vite-plugin";

export default { plugins: [cloudflare({ auxiliaryWorkers: [{ configPath: "other.toml" }] })], logLevel: "info" };
"""


def test_vite_dev_has_a_local_binding(project, url):
    with project.serving("vite", "--port", "PORT", "--host", "127.0.0.1", TAILRACE_URL=url) as running:
        answer = running.get("run").json()
        assert "Tokyo" in answer["reply"]["response"] and len(answer["id"]) == 36
        assert "Tokyo" in streamed(running.get("stream").text)
        assert running.get("error").json()["message"].startswith("5007: ")
        for place in ("object", "workflow", "service"):
            assert "Tokyo" in running.get(place).json()["reply"]["response"], place
        running.stop()
    assert project.copies() == []
    assert "experimental" not in running.output() and "directly supported" not in running.output()


def test_a_token_of_the_options_is_not_written_to_the_copy(new_project, url):
    config = new_project.folder / "vite.config.mjs"
    options = f'{{ url: "{url}", token: "own-token" }}'
    config.write_text(config.read_text().replace("tailrace()", f"tailrace({options})"))
    with new_project.serving("vite", "--port", "PORT", "--host", "127.0.0.1") as running:
        assert "Tokyo" in running.get("run").json()["reply"]["response"]
        texts = [(new_project.folder / name).read_text() for name in new_project.copies()]
        assert texts and not any("own-token" in text for text in texts)


def test_vite_build_writes_the_same_files_with_and_without_the_plugin(project):
    built = {}
    for name, text in {"with": None, "without": WITHOUT}.items():
        if text is not None:
            (project.folder / "vite.config.mjs").write_text(text)
        done = project.run("vite", "build", "--outDir", f"../{name}")
        assert done.code == 0, done.output
        folder = project.folder.parent / name
        built[name] = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    # The paths of the output folder itself are in the configurations that the build writes.
    assert {name: data.replace(b"/with/", b"/without/") for name, data in built["with"].items()} == built["without"]
    assert any(b'"ai":{"binding":"AI"}' in data for data in built["without"].values())
    assert not any(b"tailrace" in data for data in built["with"].values())


def test_a_restarted_server_still_follows_the_configuration(new_project, url):
    def says(text):
        return lambda: running.get("greeting").text == text

    with new_project.serving("vite", "--port", "PORT", "--host", "127.0.0.1", TAILRACE_URL=url) as running:
        vite = new_project.folder / "vite.config.mjs"
        vite.write_text(vite.read_text() + "// changed\n")
        wait_until(lambda: "restarted" in running.output())
        config = new_project.folder / "wrangler.jsonc"
        config.write_text(config.read_text().replace('"hello"', '"good evening"'))
        wait_until(says("good evening"))
        # The connections of the first server may end while the second one already answers.
        wait_until(lambda: "Tokyo" in running.get("run").text)
        assert len(new_project.copies()) == 1
