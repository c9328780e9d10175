"""Refused requests, interrupted replies and input at the same time: nothing is lost, and nothing moves under the reader."""

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.chat import RUN, answer_text, answer_with, ask, box, done, questions, refuse, replies, say, setting

pytestmark = pytest.mark.browser

# Each returns whether the page left the event to the browser.
PASTE = """(box, types) => {
    const data = new DataTransfer();
    if (types.includes("text")) data.setData("text/plain", "a cell");
    if (types.includes("picture")) data.items.add(new File([new Uint8Array([0])], "cells.png", {type: "image/png"}));
    return box.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true}));
}"""
DROP = """box => {
    const dataTransfer = new DataTransfer();
    dataTransfer.setData("text/plain", "a word");
    return box.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
}"""
ENTER = """(box, marks) => box.dispatchEvent(
    new KeyboardEvent("keydown", {key: "Enter", bubbles: true, cancelable: true, ...marks}))"""


def held(page: Page) -> list[Route]:
    """Return the list of the questions that wait for their answer."""
    routes: list[Route] = []
    page.unroute(RUN)
    page.route(RUN, lambda route: routes.append(route))
    return routes


def test_a_refused_edit_shows_the_conversation_again(playground):
    ask(playground, "one")
    ask(playground, "two")
    refuse(playground, 429, 3040, "busy", times=1)
    playground.get_by_role("button", name="Edit").first.click()
    playground.get_by_label("Edited question").fill("three")
    playground.get_by_label("Edited question").press("Enter")
    expect(box(playground)).to_have_value("three")
    expect(questions(playground)).to_have_text(["one", "two"])


def test_a_refused_question_outlasts_a_reload(playground):
    refuse(playground, 429, 3040, "busy", times=1)
    say(playground, "one")
    expect(playground.get_by_role("alert")).to_contain_text("The server is busy.")
    playground.reload()
    expect(box(playground)).to_have_value("one")


def test_refused_results_of_tools_are_sent_again(playground):
    answer_with(playground, [{"response": "", "tool_calls": [{"name": "weather", "arguments": {}}]}])
    ask(playground, "What is the weather?")
    refuse(playground, 429, 3040, "busy", times=1)
    playground.get_by_label("Result of weather").fill("sunny")
    playground.get_by_role("button", name="Send the result").click()
    expect(playground.get_by_role("alert")).to_contain_text("The server is busy.")
    answer_text(playground, "It is sunny.")
    with playground.expect_request(RUN) as asked:
        playground.get_by_role("button", name="Try again").click()
    assert asked.value.post_data_json["messages"][-1]["content"] == "sunny"
    expect(replies(playground).last).to_contain_text("It is sunny.")


def test_a_lost_reply_is_repeated_while_the_next_question_is_typed(playground):
    answer_with(playground, [{"response": "half"}], end="")
    say(playground, "one")
    expect(playground.get_by_role("alert")).to_contain_text("The connection was lost")
    box(playground).fill("two")
    answer_text(playground, "whole")
    playground.get_by_role("button", name="Try again").click()
    expect(replies(playground)).to_contain_text("whole")
    expect(questions(playground)).to_have_text(["one"])
    expect(box(playground)).to_have_value("two")


def test_the_end_of_a_reply_moves_neither_the_text_nor_the_focus(playground):
    answer_text(playground, "line\n\n" * 200)
    ask(playground, "one")
    routes = held(playground)
    with playground.expect_request(RUN):
        say(playground, "two")
    expect(playground.get_by_role("button", name="Stop")).to_be_enabled()
    playground.locator("#thread").evaluate("box => { box.scrollTop = 100; }")
    expect(playground.get_by_role("button", name="To the end")).to_be_visible()
    playground.get_by_label("System prompt").press_sequentially("Be ")
    routes[0].fulfill(body='data: {"response": "yes"}\n\ndata: [DONE]\n\n')
    expect(replies(playground).last).to_contain_text("yes")
    done(playground)
    playground.keyboard.type("brief.")
    expect(playground.get_by_label("System prompt")).to_have_value("Be brief.")
    assert playground.locator("#thread").evaluate("box => box.scrollTop") == 100


def test_a_small_movement_up_ends_the_following(playground):
    answer_text(playground, "line\n\n" * 200)
    ask(playground, "one")
    playground.locator("#thread").evaluate("box => { box.scrollTop -= 10; }")
    expect(playground.get_by_role("button", name="To the end")).to_be_visible()


def test_the_box_has_the_focus_after_a_reply(playground):
    answer_text(playground, "yes")
    ask(playground, "one")
    playground.get_by_role("button", name="Regenerate").click()
    expect(playground.locator(".versions")).to_contain_text("2/2")
    expect(box(playground)).to_be_focused()


@pytest.mark.parametrize(("types", "is_text"), [(["text", "picture"], True), (["picture"], False)])
def test_a_picture_beside_a_copied_text_does_not_replace_it(playground, types, is_text):
    assert box(playground).evaluate(PASTE, types) is is_text
    if not is_text:
        expect(playground.get_by_role("alert")).to_contain_text("cells.png is not a text file")


def test_a_text_can_be_dropped_into_the_box(playground):
    assert box(playground).evaluate(DROP) is True


@pytest.mark.parametrize("marks", [{"isComposing": True}, {"keyCode": 229}], ids=["most browsers", "Safari"])
def test_enter_that_ends_a_composition_sends_nothing(playground, marks):
    answer_text(playground, "yes")
    box(playground).fill("にほん")
    box(playground).evaluate(ENTER, marks)
    setting(playground, "Seed", "1")
    expect(questions(playground)).to_have_count(0)
    box(playground).press("Enter")
    expect(questions(playground)).to_have_text(["にほん"])
    playground.get_by_role("button", name="Rename").click()
    playground.get_by_label("Title").evaluate(ENTER, marks)
    playground.get_by_label("Title").fill("other")
    playground.get_by_label("Title").press("Enter")
    expect(playground.locator(".kept .title")).to_have_text("other")


def test_escape_leaves_the_title_as_it_was(playground):
    answer_text(playground, "yes")
    ask(playground, "one")
    playground.get_by_role("button", name="Rename one").click()
    playground.get_by_label("Title").fill("other")
    playground.get_by_label("Title").press("Escape")
    expect(playground.locator(".kept .title")).to_have_text("one")
    playground.reload()
    expect(playground.locator(".kept .title")).to_have_text("one")
