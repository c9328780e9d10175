"""Helpers of the playground's tests: questions, replies, and answers that a test writes."""

import json
import re
from collections.abc import Callable

from playwright.sync_api import Locator, Page, Route, expect

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1440, "height": 860}
RUN = re.compile("/ai/run/")
STREAM = {"content-type": "text/event-stream"}
Answer = Callable[[Route], None]


def box(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Your message")


def setting(page: Page, label: str, value: str) -> None:
    page.get_by_label(label, exact=True).fill(value)


def say(page: Page, text: str, *, max_tokens: int = 8) -> None:
    setting(page, "Longest reply", str(max_tokens))
    box(page).fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


def done(page: Page) -> None:
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    expect(page.get_by_role("status")).to_have_text("Ready.")


def ask(page: Page, text: str, *, max_tokens: int = 8) -> None:
    """Send a question and wait for the end of its reply."""
    before = questions(page).count()
    say(page, text, max_tokens=max_tokens)
    # The page is drawn a frame later. Before that, the state is still that of the earlier reply.
    expect(questions(page)).to_have_count(before + 1)
    done(page)


def replies(page: Page) -> Locator:
    return page.locator("#turns .assistant")


def questions(page: Page) -> Locator:
    return page.locator("#turns .user .text")


def stream_of(events: list[object], *, end: str = "data: [DONE]\n\n") -> str:
    """Return a stream with a comment before each event, as after a silence."""
    return "".join(f": keep-alive\n\ndata: {json.dumps(event)}\n\n" for event in events) + end


def answer_with(page: Page, events: list[object], *, end: str = "data: [DONE]\n\n") -> None:
    """Let the server answer each question with these events, as a model might write them."""
    page.unroute(RUN)
    page.route(RUN, lambda route: route.fulfill(status=200, headers=STREAM, body=stream_of(events, end=end)))


def answer_text(page: Page, text: str) -> None:
    answer_with(page, [{"response": text}, {"response": "", "usage": {"prompt_tokens": 9, "completion_tokens": 3}}])


def refuse(page: Page, status: int, code: int, message: str, *, times: int = 99) -> None:
    """Let the server refuse the next questions."""
    body = json.dumps({"errors": [{"code": code, "message": message}], "success": False, "result": {}, "messages": []})
    page.route(RUN, lambda route: route.fulfill(status=status, body=body), times=times)


def sent_messages(page: Page, text: str) -> list[dict[str, object]]:
    """Send a question. Returns the messages of its request."""
    with page.expect_request(RUN) as asked:
        say(page, text)
    messages: list[dict[str, object]] = asked.value.post_data_json["messages"]
    done(page)
    return messages
