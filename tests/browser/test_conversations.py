"""The conversations that the browser keeps: after a reload, in other tabs, as a file, and without storage."""

import json

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.chat import (
    DESKTOP,
    RUN,
    answer_with,
    answer_without_end,
    ask,
    box,
    done,
    questions,
    refuse,
    replies,
    say,
    sent_messages,
    setting,
    until_stored,
)

pytestmark = pytest.mark.browser


def exported(turns: dict[str, object]) -> str:
    """Return a file as the page exports it, with one conversation."""
    conversation = {"id": "0123456789", "title": "one", "updated": 1, "leaf": "a", "turns": turns}
    return json.dumps({"tailrace": 1, "conversations": [conversation]})


def kept(page: Page):
    return page.locator(".kept .title")


def ready(page: Page) -> None:
    expect(page.get_by_role("status")).to_have_text("Ready.")


def test_a_conversation_survives_a_reload_and_goes_on(playground):
    ask(playground, "one")
    reply = replies(playground).locator(".markdown").inner_text()
    until_stored(playground, "one")
    playground.reload()
    ready(playground)
    expect(questions(playground)).to_have_text(["one"])
    expect(replies(playground).locator(".markdown")).to_have_text(reply)
    assert [message["role"] for message in sent_messages(playground, "two")] == ["user", "assistant", "user"]


def test_a_reload_during_a_reply_keeps_what_had_arrived(playground):
    answer_without_end(playground, "Once upon a time")
    say(playground, "Write a very long story.")
    expect(replies(playground).locator(".markdown")).not_to_be_empty()
    until_stored(playground, "")  # a reply that has not ended
    playground.reload()
    ready(playground)
    expect(replies(playground).locator(".figures")).to_contain_text("The page was closed during the reply")


def test_settings_and_the_draft_survive_a_reload(playground):
    setting(playground, "System prompt", "Be brief.")
    setting(playground, "Temperature", "0.55")
    box(playground).fill("unsent")
    playground.reload()
    ready(playground)
    expect(playground.get_by_label("System prompt")).to_have_value("Be brief.")
    expect(playground.get_by_label("Temperature")).to_have_value("0.55")
    expect(box(playground)).to_have_value("unsent")


def test_conversations_are_listed_opened_and_searched(playground):
    ask(playground, "about rivers")
    playground.get_by_role("button", name="New chat").click()
    ask(playground, "about cities")
    expect(kept(playground)).to_have_text(["about cities", "about rivers"])
    playground.get_by_label("Search conversations").fill("RIVERS")
    expect(kept(playground)).to_have_text(["about rivers"])
    kept(playground).click()
    expect(questions(playground)).to_have_text(["about rivers"])


def test_a_conversation_is_renamed(playground):
    ask(playground, "one")
    playground.get_by_role("button", name="Rename one").click()
    playground.get_by_label("Title").fill("Another title")
    playground.get_by_label("Title").press("Enter")
    until_stored(playground, "Another title")
    playground.reload()
    expect(kept(playground)).to_have_text(["Another title"])


def test_a_deleted_conversation_can_be_restored(playground):
    ask(playground, "one")
    playground.get_by_role("button", name="Delete one").click()
    expect(kept(playground)).to_have_count(0)
    expect(questions(playground)).to_have_count(0)
    playground.get_by_role("button", name="Undo").click()
    kept(playground).click()
    expect(questions(playground)).to_have_text(["one"])


def test_exported_conversations_are_imported_again(playground, tmp_path):
    ask(playground, "one")
    with playground.expect_download() as download:
        playground.get_by_role("button", name="Export").click()
    path = tmp_path / "conversations.json"
    download.value.save_as(path)
    playground.get_by_role("button", name="Delete all").click()
    expect(kept(playground)).to_have_count(0)
    playground.locator("#import").set_input_files(path)
    expect(kept(playground)).to_have_text(["one"])


@pytest.mark.parametrize(
    "content",
    [
        "not JSON",
        "{}",
        exported({"x": {"role": "user"}}),
        # Parents in a circle: a walk to the first turn would never end.
        exported({id: {"id": id, "parent": other, "role": "user", "text": ""} for id, other in ["ab", "ba"]}),
    ],
)
def test_another_file_is_refused_with_a_sentence(playground, content):
    file = {"name": "other.json", "mimeType": "application/json", "buffer": content.encode()}
    playground.locator("#import").set_input_files(file)
    expect(playground.get_by_role("alert")).to_contain_text("has no conversations that the playground exported")
    expect(kept(playground)).to_have_count(0)


def test_two_tabs_show_the_same_conversations(playground):
    ask(playground, "one")
    other = playground.context.new_page()
    other.goto(playground.url)
    ready(other)
    expect(questions(other)).to_have_text(["one"])
    ask(other, "two")
    expect(questions(playground)).to_have_text(["one", "two"])
    other.get_by_role("button", name="Delete one").click()
    expect(kept(playground)).to_have_count(0)


def test_two_tabs_that_write_at_once_lose_nothing(playground):
    ask(playground, "one")
    other = playground.context.new_page()
    other.goto(playground.url)
    ready(other)
    expect(questions(other)).to_have_text(["one"])
    held: list[Route] = []
    playground.route(RUN, lambda route: held.append(route))
    say(playground, "left")
    expect(questions(other)).to_have_text(["one", "left"])
    ask(other, "right")
    held[0].continue_()
    done(playground)
    for page in (playground, other):
        expect(questions(page)).to_have_text(["one", "left", "right"])
    until_stored(other, "one")
    other.reload()
    ready(other)
    expect(questions(other)).to_have_text(["one", "left", "right"])
    expect(replies(other).locator(".end")).to_have_count(3)
    expect(other.get_by_text("The page was closed")).to_have_count(0)


def test_a_refused_question_leaves_nothing_behind(playground):
    ask(playground, "one")
    refuse(playground, 400, 5006, "Bad input", times=1)
    say(playground, "two")
    expect(playground.get_by_role("alert")).to_contain_text("Bad input")
    until_stored(playground, "one")
    playground.reload()
    ready(playground)
    expect(questions(playground)).to_have_text(["one"])
    ask(playground, "three")
    expect(playground.locator(".versions")).to_have_count(0)


def test_without_storage_the_page_says_so_and_answers(browser, stack):
    context = browser.new_context(base_url=f"http://{stack.http_address}", viewport=DESKTOP)
    context.add_init_script("Object.defineProperty(window, 'indexedDB', {value: undefined})")
    page = context.new_page()
    page.goto("/")
    expect(page.get_by_role("alert")).to_contain_text("does not keep the conversations")
    ask(page, "hi")
    expect(replies(page)).to_have_count(1)
    context.close()


def test_a_stopped_reply_of_a_deleted_conversation_stays_deleted(playground):
    answer_without_end(playground, "Once upon a time")
    say(playground, "Write a very long story.")
    expect(replies(playground).locator(".markdown")).not_to_be_empty()
    playground.get_by_role("button", name="Delete Write").click()
    done(playground)
    until_stored(playground)
    playground.reload()
    ready(playground)
    expect(kept(playground)).to_have_count(0)


def test_a_title_is_the_text_of_the_question(playground):
    answer_with(playground, [{"response": "yes"}])
    ask(playground, "<b>bold</b> " * 20)
    expect(kept(playground)).to_contain_text("<b>bold</b>")
