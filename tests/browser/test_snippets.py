"""The code that the playground shows: it has the current settings, and it runs against the stack."""

import os
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from tests.browser.chat import ask, box, setting
from tests.clients.node_programs import node_folder
from tests.support.processes import ROOT

pytestmark = pytest.mark.browser

TABS = {
    "curl": "curl",
    "Python": "import requests",
    "JavaScript": "fetch(",
    "OpenAI SDK": "OpenAI(",
    "Tailrace client": "tailrace.Client(",
    "Worker": "env.AI.run",
}
# What a model might be asked: both quotes, a backslash, a dollar, a line break, and letters beyond ASCII.
QUESTION = 'Say "it\'s $HOME" \\ `now`\nпривет {x} %s ${y}'
SECONDS = 60


def code(page, tab):
    page.get_by_role("tab", name=tab).click()
    return page.locator("#code")


@pytest.mark.parametrize("tab", TABS)
def test_the_code_is_that_of_the_settings(playground, tab):
    setting(playground, "Seed", "41")
    setting(playground, "Temperature", "0.55")
    text = code(playground, tab)
    expect(text).to_contain_text(TABS[tab])
    expect(text).to_contain_text("41")
    expect(text).to_contain_text("0.55")
    expect(text).to_contain_text("512")


def test_with_an_empty_box_the_code_is_that_of_the_latest_request(playground):
    text = code(playground, "curl")
    expect(text).to_contain_text("where is new york?")
    playground.get_by_role("tab", name="Settings").click()
    ask(playground, "Name a river.")
    code(playground, "curl")
    expect(text).to_contain_text('"content": "Name a river."')
    expect(text).not_to_contain_text("assistant")
    box(playground).fill("Another.")
    expect(text).to_contain_text('"content": "Another."')
    expect(text).to_contain_text("assistant")
    playground.get_by_role("button", name="New chat").click()
    box(playground).fill("")
    expect(text).to_contain_text("where is new york?")


def run(tab, text, folder):
    """Run the program. Returns what it printed."""
    node = str(node_folder() / "node")
    commands = {"curl": ["bash", "-c", text]}
    if tab in ("JavaScript", "Worker"):
        program = folder / "program.mjs"
        program.write_text(text)
        commands = {"JavaScript": [node, program], "Worker": [node, "--check", program]}
    command = commands.get(tab, [sys.executable, "-c", text])
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, cwd=ROOT)


# The SDK and the client have one form for both APIs, and take seconds to import.
@pytest.mark.parametrize(
    ("tab", "api"), [*((tab, "run") for tab in TABS), *((tab, "chat") for tab in ("curl", "Python", "JavaScript"))]
)
def test_the_code_runs(playground, tab, api, tmp_path):
    playground.get_by_label("API", exact=True).select_option(api)
    setting(playground, "Longest reply", "4")
    setting(playground, "Top k", "20")
    setting(playground, "Min p", "0.1")
    playground.get_by_label("Format").select_option("json_schema")
    playground.get_by_label("JSON Schema").fill('{"type": "object", "properties": {"a": {"type": "boolean"}}}')
    box(playground).fill(QUESTION)
    done = run(tab, code(playground, tab).inner_text(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert tab == "Worker" or "{" in done.stdout


def test_code_that_is_refused_ends_with_the_error(playground, tmp_path):
    text = code(playground, "Python").inner_text().replace("@cf/meta/llama-2-7b-chat-int8", "@cf/none/none")
    done = run("Python", text, tmp_path)
    assert done.returncode == 1 and "400: " in done.stderr
