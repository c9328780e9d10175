"""The settings of the playground: parameters, the form of the reply, tokens, accounts, and the state of the server."""

import hashlib
import json
import subprocess
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chat import DESKTOP, RUN, answer_with, ask, box, done, replies, say, setting
from tests.support.processes import free_address

pytestmark = pytest.mark.browser

# Changes the page without moving the focus.
CHOOSE_DARK = "box => { box.value = 'dark'; box.dispatchEvent(new Event('change', {bubbles: true})); }"
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}


def test_empty_settings_show_the_models_sampling_defaults(playground):
    expect(playground.get_by_label("Top p")).to_have_attribute("placeholder", "0.9")
    expect(playground.get_by_label("Temperature")).to_have_attribute("placeholder", "0.6")
    expect(playground.get_by_label("Frequency penalty")).to_have_attribute("placeholder", "0.2")


def test_a_reply_has_at_most_512_tokens_by_default(playground):
    expect(playground.get_by_label("Longest reply")).to_have_value("512")


def test_values_are_sent_and_empty_ones_are_not(playground):
    setting(playground, "Temperature", "0.55")
    setting(playground, "Seed", "7")
    playground.get_by_label("Stop strings, one a line").fill("END\nSTOP")
    with playground.expect_request(RUN) as asked:
        say(playground, "hi", max_tokens=2)
    body = asked.value.post_data_json
    assert (body["temperature"], body["seed"], body["max_tokens"], "top_p" in body) == (0.55, 7, 2, False)
    assert body["stop"] == ["END", "STOP"]
    done(playground)


@pytest.mark.parametrize(
    ("label", "value", "fault"),
    [
        ("Temperature", "9", "The largest value is 5."),
        ("Longest reply", "0", "The smallest value is 1."),
        ("Top k", "1.5", "This must be a whole number."),
        ("Repetition penalty", "0", "This must be above 0."),
    ],
)
def test_a_value_out_of_range_is_explained_and_not_sent(playground, label, value, fault):
    asked = []
    playground.on("request", lambda request: asked.append(request.url))
    setting(playground, label, value)
    expect(playground.get_by_text(fault, exact=True)).to_be_visible()
    box(playground).fill("hi")
    box(playground).press("Enter")
    expect(playground.get_by_role("alert")).to_contain_text(f"{label}: {fault}")
    expect(box(playground)).to_have_value("hi")
    assert not [url for url in asked if "/ai/run/" in url]


def test_a_negative_number_can_be_typed(playground):
    playground.get_by_label("Presence penalty").press_sequentially("-1.5")
    expect(playground.get_by_label("Presence penalty")).to_have_value("-1.5")
    with playground.expect_request(RUN) as asked:
        ask(playground, "hi", max_tokens=2)
    assert asked.value.post_data_json["presence_penalty"] == -1.5


def test_parameters_are_reset(playground):
    setting(playground, "Temperature", "1")
    setting(playground, "Longest reply", "9")
    playground.get_by_role("button", name="Reset the parameters").click()
    expect(playground.get_by_label("Temperature")).to_have_value("")
    expect(playground.get_by_label("Longest reply")).to_have_value("512")


@pytest.mark.parametrize("api", ["run", "chat"])
def test_a_reply_is_json_that_the_schema_allows(playground, api):
    playground.get_by_label("API", exact=True).select_option(api)
    playground.get_by_label("Format").select_option("json_schema")
    playground.get_by_label("JSON Schema").fill(json.dumps(CITY))
    setting(playground, "Temperature", "0")
    ask(playground, "Name a city.", max_tokens=60)
    text = replies(playground).locator(".markdown").inner_text()
    assert isinstance(json.loads(text)["city"], str)


@pytest.mark.parametrize(("field", "text"), [("Tools", "{}"), ("Tools", "[oops"), ("JSON Schema", "[]")])
def test_a_field_that_is_not_json_is_explained(playground, field, text):
    playground.get_by_label("Format").select_option("json_schema")
    playground.get_by_label(field, exact=True).fill(text)
    expect(playground.get_by_label(field, exact=True)).to_have_attribute("aria-invalid", "true")
    box(playground).fill("hi")
    box(playground).press("Enter")
    expect(playground.get_by_role("alert")).to_contain_text(f"{field}: ")


def test_the_theme_is_chosen_and_kept(playground):
    background = "getComputedStyle(document.body).backgroundColor"
    light = playground.evaluate(background)
    playground.get_by_label("Theme").select_option("dark")
    expect(playground.locator("html")).to_have_attribute("data-theme", "dark")
    assert playground.evaluate(background) != light
    playground.reload()
    expect(playground.locator("html")).to_have_attribute("data-theme", "dark")


@pytest.fixture(scope="module")
def guarded(stack, tmp_path_factory) -> Iterator[str]:
    """The address of a second bridge of the stack. The token "first" is for the account ada, "any" for all accounts."""
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"ada {hashlib.sha256(b'first').hexdigest()}\n")
    address = free_address()
    settings = {"TAILRACE_API_TOKENS": "any", "TAILRACE_API_TOKENS_FILE": str(path), "TAILRACE_HTTP_ADDRESS": address}
    stack.spawn("http_bridge", name="guarded bridge", **settings)
    stack.wait_until_answered(f"http://{address}/readyz")
    yield address
    stack.process("guarded bridge").terminate()


@pytest.fixture
def locked(browser, guarded) -> Iterator[Page]:
    context = browser.new_context(base_url=f"http://{guarded}", viewport=DESKTOP)
    page = context.new_page()
    page.goto("/")
    expect(page.get_by_role("alert")).to_contain_text("requires an API token")
    yield page
    context.close()


def enter(page: Page, label: str, value: str) -> None:
    page.get_by_label(label, exact=True).fill(value)
    page.get_by_label(label, exact=True).press("Tab")


def ready(page: Page) -> None:
    expect(page.get_by_role("status")).to_have_text("Ready.")


@pytest.mark.parametrize(("token", "account"), [("first", "ada"), ("any", "local")])
def test_the_account_is_that_of_the_token(locked, token, account):
    locked.get_by_role("button", name="Enter the token").click()
    expect(locked.get_by_label("API token")).to_be_focused()
    locked.keyboard.type(token)
    locked.keyboard.press("Tab")
    ready(locked)
    with locked.expect_request(RUN) as asked:
        say(locked, "hi", max_tokens=2)
    assert f"/accounts/{account}/" in asked.value.url
    ready(locked)


def test_a_wrong_token_and_a_wrong_account_are_told_apart(locked):
    enter(locked, "API token", "other")
    expect(locked.get_by_role("alert")).to_contain_text("The API token is wrong")
    enter(locked, "Account", "bob")
    enter(locked, "API token", "first")
    expect(locked.get_by_role("alert")).to_contain_text("belongs to another account")
    enter(locked, "Account", "")
    ready(locked)


def test_a_token_that_is_being_typed_outlasts_a_change_of_the_page(locked):
    locked.get_by_label("API token").fill("fir")
    locked.get_by_label("Theme").evaluate(CHOOSE_DARK)
    expect(locked.locator("html")).to_have_attribute("data-theme", "dark")
    locked.get_by_label("API token").press_sequentially("st")
    locked.keyboard.press("Tab")
    ready(locked)


@pytest.mark.parametrize("is_remembered", [False, True])
def test_a_token_is_kept_for_the_session_or_on_request(locked, is_remembered):
    locked.get_by_label("Remember the token").set_checked(is_remembered)
    enter(locked, "API token", "first")
    ready(locked)
    locked.reload()
    ready(locked)
    other = locked.context.new_page()
    other.goto("/")
    expect(other.get_by_label("API token")).to_have_value("first" if is_remembered else "")


def test_a_page_opened_before_the_server_is_ready_waits_for_it(browser, stack):
    address = free_address()
    nowhere = {"TAILRACE_HTTP_ADDRESS": address, "TAILRACE_GRPC_ADDRESS": free_address()}
    stack.spawn("http_bridge", name="early bridge", **nowhere)
    stack.wait_until_answered(f"http://{address}/healthz")
    page = browser.new_page()
    page.goto(f"http://{address}/")
    status = page.get_by_role("status")
    expect(status).to_contain_text("Trying again")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    early: subprocess.Popen[bytes] = stack.process("early bridge")
    early.terminate()
    early.wait(10)
    expect(status).to_contain_text("does not answer")
    stack.spawn("http_bridge", name="late bridge", TAILRACE_HTTP_ADDRESS=address)
    expect(status).to_have_text("Ready.")
    page.close()
    stack.process("late bridge").terminate()


def test_thinking_is_offered_to_models_that_think_alone(playground):
    expect(playground.get_by_label("Thinking")).to_have_count(0)
    answer_with(playground, [{"response": "yes"}])
    ask(playground, "hi")
