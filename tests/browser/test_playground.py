"""The playground in a real browser against the real stack."""

import json
import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.e2e.stack import Stack

pytestmark = pytest.mark.browser

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}
RUN = re.compile("/ai/run/")


@pytest.fixture
def playground(browser: Browser, stack: Stack) -> Iterator[Page]:
    """Open the page on a desktop. A script error or a request to another host fails the test."""
    context = browser.new_context(base_url=f"http://{stack.http_address}", viewport=DESKTOP)
    context.set_default_timeout(20_000)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if stack.http_address in request.url else wrong.append(request.url))
    page.goto("/")
    expect(page.get_by_role("status")).to_have_text("Ready.")
    yield page
    context.close()
    assert wrong == []


def say(page: Page, text: str, *, max_tokens: int = 8) -> None:
    page.get_by_label("Longest reply").fill(str(max_tokens))
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Send").click()


def replies(page: Page):
    return page.locator("#turns .assistant")


def test_empty_settings_show_the_models_sampling_defaults(playground):
    expect(playground.get_by_label("Top p")).to_have_attribute("placeholder", "0.9")
    expect(playground.get_by_label("Temperature")).to_have_attribute("placeholder", "0.6")


def done(page: Page) -> None:
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    expect(page.get_by_role("status")).to_have_text("Ready.")


def answer_with(page: Page, events: list[object], *, end: str = "data: [DONE]\n\n") -> None:
    # With a comment before each event, as after a silence.
    body = "".join(f": keep-alive\n\ndata: {json.dumps(event)}\n\n" for event in events) + end
    headers = {"content-type": "text/event-stream"}
    page.route(RUN, lambda route: route.fulfill(status=200, headers=headers, body=body))


def test_a_reply_grows_and_its_speed_is_shown(playground):
    say(playground, "Tell me a story about a river.", max_tokens=40)
    done(playground)
    assert len(replies(playground).inner_text()) > 20
    expect(playground.locator("#figures")).to_contain_text(
        re.compile(r"first token after \d+ ms, .+ tokens/s, \d+ \+ 40")
    )


def test_the_whole_conversation_and_the_system_prompt_are_sent(playground):
    playground.get_by_label("System prompt").fill("Be brief.")
    say(playground, "one")
    done(playground)
    with playground.expect_request(RUN) as asked:
        say(playground, "two")
    messages = asked.value.post_data_json["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert (messages[0]["content"], messages[3]["content"]) == ("Be brief.", "two")
    done(playground)


def test_sampling_values_are_sent_and_empty_ones_are_not(playground):
    playground.get_by_label("Temperature").fill("0")
    playground.get_by_label("Seed").fill("7")
    with playground.expect_request(RUN) as asked:
        say(playground, "hi", max_tokens=2)
    body = asked.value.post_data_json
    assert (body["temperature"], body["seed"], body["max_tokens"], "top_p" in body) == (0, 7, 2, False)
    done(playground)


def test_stop_ends_the_run_on_the_server_too(playground, stack):
    before = len(stack.runs())
    say(playground, "Write a very long story.", max_tokens=1000)
    expect(replies(playground)).not_to_be_empty()
    playground.get_by_role("button", name="Stop").click()
    expect(playground.get_by_role("status")).to_have_text("Stopped.")
    assert stack.wait_for_runs(before + 1, timeout_seconds=10)[before].outcome == "cancelled"


def test_escape_stops_and_enter_sends(playground):
    box = playground.get_by_label("Your message")
    playground.get_by_label("Longest reply").fill("1000")
    box.fill("Write a very long story.")
    box.press("Enter")
    expect(replies(playground)).not_to_be_empty()
    playground.keyboard.press("Escape")
    expect(playground.get_by_role("status")).to_have_text("Stopped.")


def test_events_are_shown_as_received(playground):
    say(playground, "hi", max_tokens=3)
    done(playground)
    events = playground.locator("#events").inner_text()
    assert events.startswith('data: {"response":') and events.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize(
    ("tab", "expected"), [("curl", "curl -N"), ("Python", "import requests"), ("Worker", "env.AI.run")]
)
def test_the_code_is_that_of_the_settings(playground, tab, expected):
    playground.get_by_label("Seed").fill("41")
    playground.get_by_role("tab", name=tab).click()
    code = playground.locator("#code")
    expect(code).to_contain_text(expected)
    expect(code).to_contain_text('"seed": 41')


def test_with_an_empty_box_the_code_is_that_of_the_latest_request(playground):
    playground.get_by_role("tab", name="curl").click()
    code = playground.locator("#code")
    expect(code).to_contain_text("where is new york?")
    say(playground, "Name a river.")
    done(playground)
    expect(code).to_contain_text('"content": "Name a river."')
    expect(code).not_to_contain_text("where is new york?")
    expect(code).not_to_contain_text("assistant")
    playground.get_by_label("Your message").fill("Another.")
    expect(code).to_contain_text('"content": "Another."')
    expect(code).to_contain_text("assistant")
    playground.get_by_role("button", name="New chat").click()
    playground.get_by_label("Your message").fill("")
    expect(code).to_contain_text("where is new york?")


def test_tabs_follow_the_arrow_keys(playground):
    playground.get_by_role("tab", name="Events").focus()
    playground.keyboard.press("ArrowRight")
    expect(playground.get_by_role("tab", name="curl")).to_have_attribute("aria-selected", "true")
    expect(playground.locator("#code")).to_be_visible()


def test_markup_in_a_reply_stays_text(playground):
    answer_with(
        playground, [{"response": "<b id='markup'>x</b>"}, {"response": "<script>document.title='run'</script>"}]
    )
    say(playground, "hi")
    done(playground)
    assert "<b id='markup'>" in replies(playground).inner_text()
    assert playground.title() == "Tailrace playground" and playground.locator("#markup").count() == 0


def test_a_failure_during_the_stream_is_shown(playground):
    error = {"response": "", "errors": [{"code": 3000, "message": "it broke"}], "success": False}
    answer_with(playground, [{"response": "one"}, error], end="")
    say(playground, "hi")
    expect(playground.get_by_role("status")).to_have_text("it broke (3000)")
    expect(playground.get_by_role("button", name="Send")).to_be_enabled()


def test_a_refusal_is_shown(playground):
    playground.get_by_label("Longest reply").evaluate("box => box.removeAttribute('min')")
    say(playground, "hi", max_tokens=0)
    expect(playground.get_by_role("status")).to_contain_text("'/max_tokens' must be >= 1")


def test_a_value_out_of_range_is_not_sent(playground):
    playground.get_by_label("Temperature").fill("9")
    asked = []
    playground.on("request", lambda request: asked.append(request.url))
    say(playground, "hi")
    assert playground.get_by_label("Temperature").evaluate("box => !box.checkValidity()")
    assert asked == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("path", ["/", "/docs"])
def test_axe_finds_nothing_serious(playground, scheme, size, path):
    playground.emulate_media(color_scheme=scheme)
    playground.set_viewport_size(size)
    playground.goto(path)
    expect(playground.get_by_role("status")).not_to_contain_text("…")
    found = Axe().run(playground).response["violations"]
    assert [item["id"] for item in found if item["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_on_a_phone_nothing_is_wider_than_the_screen(playground, path):
    playground.set_viewport_size(PHONE)
    playground.goto(path)
    expect(playground.get_by_role("status")).not_to_contain_text("…")
    assert playground.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_reference_names_every_route(playground):
    playground.goto("/docs")
    headings = playground.get_by_role("heading", level=2)
    expect(headings.filter(has_text="/v1/chat/completions")).to_have_count(2)
    expect(headings.filter(has_text="POST /client/v4/accounts/{account}/ai/run/{model}")).to_have_count(1)
    expect(playground.locator("body")).not_to_contain_text(re.compile(r"\b1 characters"))
