"""The examples' pages in a real browser against the real stack: growing text, one run per question, Stop, errors."""

import json
import re
import time

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser

PAGES = pytest.mark.parametrize("path", ["/", "/fetch"])
STORY = "Write a long story about a river and the people who live beside it."
MARKUP = (
    '<b id="markup">bold</b><script>document.title = "run"</script><img src="x" onerror="document.title = \'run\'">'
)
# A browser reconnects a lost EventSource after about three seconds.
RECONNECT_SECONDS = 4

# Records every length of the reply's text.
WATCH_LENGTHS = """() => {
    const reply = document.querySelector("#reply");
    window.lengths = [];
    new MutationObserver(() => window.lengths.push(reply.textContent.length))
        .observe(reply, {childList: true, characterData: true, subtree: true});
}"""

# The announcement's code, with the mistake that it warns of.
UNCLOSED_PAGE = """<!doctype html><title>unclosed</title><div id="reply"></div><script>
const el = document.querySelector("#reply");
const source = new EventSource("/worker-endpoint?prompt=hello&seed=1&max_tokens=3");
source.onmessage = (event) => {
    if (event.data == "[DONE]") return;
    el.textContent += JSON.parse(event.data).response;
};
</script>"""


def send(page: Page, prompt: str, *, seed: int = 1, max_tokens: int | None = None) -> None:
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_label("Tokens, at most").fill(str(max_tokens or ""))
    page.get_by_role("button", name="Send").click()


def ask(page: Page, prompt: str, *, seed: int = 1, max_tokens: int) -> str:
    """Send the prompt and wait for the end. Returns the reply's text on the page."""
    send(page, prompt, seed=seed, max_tokens=max_tokens)
    expect(page.get_by_role("status")).to_have_text("Done.")
    return page.locator("#reply").text_content() or ""


def answer_with(page: Page, text: str) -> None:
    """Let the endpoint answer with `text` as a complete reply, as a model might write it."""
    body = f": keep-alive\n\ndata: {json.dumps({'response': text})}\n\n: keep-alive\n\ndata: [DONE]\n\n"
    page.route(
        re.compile("/worker-endpoint"),
        lambda route: route.fulfill(status=200, headers={"content-type": "text/event-stream"}, body=body),
    )


@PAGES
def test_text_grows_and_the_prompt_runs_once(stack, page, path):
    num_runs = len(stack.settled_runs())
    page.goto(path)
    page.evaluate(WATCH_LENGTHS)
    reply = ask(page, "where is new york?", max_tokens=12)
    # The length is 0 before the first event and stays the same at events without text.
    lengths = [length for length in dict.fromkeys(page.evaluate("window.lengths")) if length]
    assert len(lengths) >= 5
    assert lengths == sorted(lengths)
    assert lengths[-1] == len(reply)
    time.sleep(RECONNECT_SECONDS)
    page.close()  # ends a second run that is still running
    assert [run.outcome for run in stack.settled_runs()[num_runs:]] == ["completed"]


def test_event_source_is_closed_at_the_end(stack, page):
    page.goto("/")
    ask(page, "hello", max_tokens=3)
    assert page.evaluate("source.readyState === EventSource.CLOSED")


def test_event_source_that_is_not_closed_runs_the_prompt_again(stack, page):
    num_runs = len(stack.settled_runs())
    page.route("**/unclosed", lambda route: route.fulfill(content_type="text/html", body=UNCLOSED_PAGE))
    page.goto("/unclosed")
    runs = stack.wait_for_runs(num_runs + 2, timeout_seconds=5 * RECONNECT_SECONDS)[num_runs:]
    page.close()
    assert [run.outcome for run in runs[:2]] == ["completed", "completed"]


def test_both_pages_show_the_same_reply_for_a_seed(stack, page):
    page.goto("/")
    with_event_source = ask(page, STORY, seed=7, max_tokens=12)
    page.goto("/fetch")
    with_fetch = ask(page, STORY, seed=7, max_tokens=12)
    assert with_event_source == with_fetch != ""


@PAGES
def test_stop_cancels_the_run(stack, page, path):
    num_runs = len(stack.settled_runs())
    page.goto(path)
    send(page, STORY)
    expect(page.locator("#reply")).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    runs = stack.wait_for_runs(num_runs + 1, timeout_seconds=10)[num_runs:]
    assert [run.outcome for run in runs] == ["cancelled"]
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()


@PAGES
def test_leaving_the_page_cancels_the_run(stack, page, path):
    num_runs = len(stack.settled_runs())
    page.goto(path)
    send(page, STORY)
    expect(page.locator("#reply")).not_to_be_empty()
    page.close()
    runs = stack.wait_for_runs(num_runs + 1, timeout_seconds=10)[num_runs:]
    assert [run.outcome for run in runs] == ["cancelled"]


@PAGES
def test_second_question_replaces_the_first(stack, page, path):
    num_runs = len(stack.settled_runs())
    page.goto(path)
    send(page, STORY)
    expect(page.locator("#reply")).not_to_be_empty()
    reply = ask(page, "hello", seed=3, max_tokens=4)
    page.reload()
    assert ask(page, "hello", seed=3, max_tokens=4) == reply
    assert [run.outcome for run in stack.settled_runs()[num_runs:]].count("cancelled") == 1


@pytest.fixture(scope="session")
def address_without_model(stack):
    """Start a web app with a model that is not in the catalog and has a name that is markup."""
    return stack.start_web_app(MODEL='@cf/none/<b id="markup">bold')


@PAGES
def test_refusal_is_shown_as_a_sentence(stack, address_without_model, page, path):
    page.goto(f"http://{address_without_model}{path}")
    send(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text('No such model @cf/none/<b id="markup">bold or task')
    expect(page.get_by_role("status")).to_be_empty()
    expect(page.locator("#markup")).to_have_count(0)
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()


@PAGES
def test_failure_in_the_middle_is_shown_as_a_sentence(stack, page, path):
    failure = {"response": "", "errors": [{"code": 3000, "message": "The model failed."}], "success": False}
    body = f'data: {{"response":"New"}}\n\ndata: {json.dumps(failure)}\n\n'
    page.route(
        re.compile("/worker-endpoint"),
        lambda route: route.fulfill(status=200, headers={"content-type": "text/event-stream"}, body=body),
    )
    page.goto(path)
    send(page, "hello")
    expect(page.get_by_role("alert")).to_have_text("The model failed.")
    expect(page.locator("#reply")).to_have_text("New")


@PAGES
def test_stream_that_breaks_off_is_shown_as_a_sentence(stack, page, path):
    page.route(
        re.compile("/worker-endpoint"),
        lambda route: route.fulfill(
            status=200, headers={"content-type": "text/event-stream"}, body='data: {"response":"New"}\n\n'
        ),
    )
    page.goto(path)
    send(page, "hello")
    expect(page.get_by_role("alert")).to_have_text("The connection was lost before the reply was complete.")


@PAGES
def test_unreachable_server_is_shown_as_a_sentence(stack, page, path):
    page.route(re.compile("/worker-endpoint"), lambda route: route.abort("connectionrefused"))
    page.goto(path)
    send(page, "hello")
    expect(page.get_by_role("alert")).to_have_text("The server does not answer.")


@PAGES
def test_markup_in_prompt_and_reply_stays_text(stack, page, path):
    answer_with(page, MARKUP)
    page.goto(path)
    title = page.title()
    assert ask(page, MARKUP, max_tokens=1) == MARKUP
    assert page.locator("#markup, main script, main img").count() == 0
    page.wait_for_timeout(200)
    assert page.title() == title


@PAGES
def test_pages_send_no_request_to_other_hosts(stack, page, path):
    hosts = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.goto(path)
    ask(page, "hello", max_tokens=2)
    assert hosts == {stack.web_address}
