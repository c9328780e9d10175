"""Helpers of the playground's tests: questions, replies, and answers that a test writes."""

import json
import re
import time
from collections.abc import Callable

from playwright.sync_api import Locator, Page, Route, expect

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1440, "height": 860}
RUN = re.compile("/ai/run/")
STREAM = {"content-type": "text/event-stream"}
Answer = Callable[[Route], None]
SECONDS = 20.0

# The page is drawn a frame after a change of its state, or 200 ms after it where the browser draws no frames.
_DRAWN = """() => new Promise(drawn => document.hidden
    ? setTimeout(drawn, 400)
    : requestAnimationFrame(() => requestAnimationFrame(drawn)))"""

# Answers with one event, and then nothing until the request is aborted.
_OPEN_ANSWER = """event => {
    const { fetch } = window;
    window.fetch = (url, options) => {
        if (!String(url).includes("/ai/run/")) return fetch(url, options);
        const body = new ReadableStream({
            start(stream) {
                stream.enqueue(new TextEncoder().encode(event));
                options.signal.addEventListener("abort", () => stream.error(options.signal.reason));
            },
        });
        return Promise.resolve(new Response(body));
    };
}"""

_STORED = """async () => {
    const result = request => new Promise((resolve, reject) => {
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => reject(request.error);
    });
    const opening = indexedDB.open("tailrace");
    // Before the page has created it, there is nothing in it.
    opening.onupgradeneeded = () => opening.transaction.abort();
    const database = await result(opening).catch(() => null);
    const found = database ? await result(database.transaction("conversations").objectStore("conversations").getAll()) : [];
    database?.close();
    return found;
}"""


def box(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Your message")


def setting(page: Page, label: str, value: str) -> None:
    page.get_by_label(label, exact=True).fill(value)


def say(page: Page, text: str, *, max_tokens: int = 8) -> None:
    setting(page, "Longest reply", str(max_tokens))
    box(page).fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


def drawn(page: Page) -> None:
    """Wait until the page shows the effects of what was done last."""
    page.evaluate(_DRAWN)


def done(page: Page) -> None:
    """Wait for the end of the reply that was asked for last."""
    # Until the page is drawn, the state is still that of the earlier reply.
    drawn(page)
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    expect(page.get_by_role("status")).to_have_text("Ready.")


def ask(page: Page, text: str, *, max_tokens: int = 8) -> None:
    """Send a question and wait for the end of its reply."""
    drawn(page)
    before = questions(page).count()
    say(page, text, max_tokens=max_tokens)
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


def answer_without_end(page: Page, text: str) -> None:
    """Let each answer begin with `text` and continue until the page stops it. A reload ends the effect."""
    page.evaluate(_OPEN_ANSWER, stream_of([{"response": text}], end=""))


def until_stored(page: Page, *titles: str) -> None:
    """Wait until the browser has stored the conversations with these titles, the newest first, and complete replies.

    The page stores them while it goes on. A reload before that ends an unfinished transaction without effect.
    """
    deadline = time.monotonic() + SECONDS
    while (found := _stored(page)) != list(titles):
        assert time.monotonic() < deadline, found
        page.wait_for_timeout(20)


def _stored(page: Page) -> list[str]:
    """Return the titles of the stored conversations; empty ones for those with a reply that has not ended."""
    conversations = sorted(page.evaluate(_STORED), key=lambda each: -each["updated"])
    return ["" if _is_running(each) else each["title"] for each in conversations]


def _is_running(conversation: dict[str, dict[str, dict[str, list[dict[str, str]]]]]) -> bool:
    replies = [reply for turn in conversation["turns"].values() for reply in turn.get("replies") or []]
    return any(reply["finish"] in ("waiting", "running") for reply in replies)


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
