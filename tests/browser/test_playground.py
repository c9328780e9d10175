"""The playground in a real browser against the real stack: questions, replies, and what goes wrong with them."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.chat import (
    RUN,
    answer_text,
    answer_with,
    answer_without_end,
    ask,
    box,
    done,
    drawn,
    questions,
    refuse,
    replies,
    say,
    sent_messages,
    setting,
    stream_of,
)

pytestmark = pytest.mark.browser

STORY = "Write a very long story."
TOO_LONG = "AiError: AiError: The prompt has 2100 tokens, the model takes 2048 (5b5f3f6e-0000-4000-8000-1234567890ab)"


def test_a_reply_grows_and_its_figures_are_shown(playground):
    ask(playground, "Tell me a story about a river.", max_tokens=40)
    assert len(replies(playground).inner_text()) > 20
    expect(replies(playground).locator(".figures")).to_contain_text(
        re.compile(r"\d+ \+ 40 tokens.*first token after \d+ ms.*tokens/s")
    )


def test_a_cut_reply_is_marked_and_can_be_continued(playground):
    setting(playground, "Temperature", "0")
    ask(playground, "Where is New York?", max_tokens=6)
    expect(replies(playground).locator(".figures")).to_contain_text("Cut at the limit of the reply")
    begun = replies(playground).locator(".markdown").text_content()
    answer_text(playground, " and the rest")
    with playground.expect_request(RUN) as asked:
        playground.get_by_role("button", name="Continue").click()
    body = asked.value.post_data_json
    assert body["continue_final_message"] is True and body["messages"][-1]["role"] == "assistant"
    done(playground)
    expect(replies(playground)).to_have_count(1)
    expect(replies(playground).locator(".markdown")).to_have_text(f"{begun} and the rest")


def test_the_whole_conversation_and_the_system_prompt_are_sent(playground):
    setting(playground, "System prompt", "Be brief.")
    ask(playground, "one")
    messages = sent_messages(playground, "two")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert (messages[0]["content"], messages[3]["content"]) == ("Be brief.", "two")


def test_stop_ends_the_run_on_the_server_too(playground, stack):
    before = len(stack.settled_runs())
    say(playground, STORY, max_tokens=1000)
    expect(replies(playground).locator(".markdown")).not_to_be_empty()
    expect(playground.get_by_role("status")).to_have_text("Writing…")
    playground.get_by_role("button", name="Stop").click()
    expect(playground.get_by_role("status")).to_have_text("Stopped.")
    expect(replies(playground).locator(".figures")).to_contain_text("Stopped")
    assert stack.wait_for_runs(before + 1, timeout_seconds=10)[before].outcome == "cancelled"


def test_escape_stops_enter_sends_and_shift_enter_makes_a_line(playground):
    answer_without_end(playground, "Once upon a time")
    box(playground).fill(STORY)
    box(playground).press("Shift+Enter")
    playground.keyboard.type("Begin.")
    box(playground).press("Enter")
    expect(replies(playground).locator(".markdown")).not_to_be_empty()
    playground.keyboard.press("Escape")
    expect(playground.get_by_role("status")).to_have_text("Stopped.")
    expect(questions(playground)).to_have_text(f"{STORY}\nBegin.")


def test_new_chat_during_a_reply_stops_it_and_forgets_it(playground, stack):
    before = len(stack.settled_runs())
    say(playground, STORY, max_tokens=1000)
    expect(replies(playground).locator(".markdown")).not_to_be_empty()
    playground.get_by_role("button", name="New chat").click()
    expect(replies(playground)).to_have_count(0)
    assert sent_messages(playground, "hi") == [{"role": "user", "content": "hi"}]
    runs = stack.wait_for_runs(before + 2, timeout_seconds=10)[before:]
    assert sorted(run.outcome for run in runs) == ["cancelled", "completed"]


def test_regenerate_keeps_the_earlier_reply_as_a_version(playground):
    setting(playground, "Temperature", "2")
    ask(playground, "Name a city.", max_tokens=20)
    first = replies(playground).locator(".markdown").inner_text()
    playground.get_by_role("button", name="Regenerate").click()
    done(playground)
    expect(replies(playground)).to_have_count(1)
    expect(replies(playground).locator(".versions")).to_contain_text("2/2")
    playground.get_by_role("button", name="Earlier version").click()
    expect(replies(playground).locator(".markdown")).to_have_text(first)


def test_an_edited_question_begins_a_branch(playground):
    ask(playground, "one")
    ask(playground, "two")
    playground.get_by_role("button", name="Edit").first.click()
    playground.get_by_label("Edited question").fill("three")
    with playground.expect_request(RUN) as asked:
        playground.get_by_label("Edited question").press("Enter")
    assert asked.value.post_data_json["messages"] == [{"role": "user", "content": "three"}]
    done(playground)
    expect(questions(playground)).to_have_text(["three"])
    playground.locator(".user").get_by_role("button", name="Earlier version").click()
    expect(questions(playground)).to_have_text(["one", "two"])


def test_two_models_answer_side_by_side_and_one_is_kept(playground):
    second = playground.get_by_label("Second model").locator("option").nth(1).get_attribute("value")
    playground.get_by_label("Second model").select_option(index=1)
    ask(playground, "Name a river.")
    columns = replies(playground).locator(".reply")
    expect(columns).to_have_count(2)
    expect(columns.nth(1).locator(".name")).to_have_text(second)
    playground.get_by_role("button", name="Continue with this reply").nth(1).click()
    expect(columns).to_have_count(1)
    expect(playground.get_by_label("Model", exact=True)).to_have_value(second)


def test_embedding_models_are_not_offered(playground):
    names = playground.get_by_label("Model", exact=True).locator("option").all_inner_texts()
    assert len(names) == 3 and not any("bge" in name or "minilm" in name for name in names)


def test_events_are_shown_as_received(playground):
    setting(playground, "Longest reply", "8")
    playground.get_by_role("tab", name="Events").click()
    box(playground).fill("hi")
    box(playground).press("Enter")
    events = playground.locator("#events")
    expect(events).to_contain_text("data: [DONE]")
    assert events.inner_text().startswith('data: {"response":')
    assert events.inner_text().rstrip().endswith("data: [DONE]")


def test_the_chat_completions_api_answers_as_well(playground):
    playground.get_by_label("API", exact=True).select_option("chat")
    ask(playground, "Name a river.", max_tokens=6)
    expect(replies(playground).locator(".figures")).to_contain_text(re.compile(r"Cut at the limit.*\+ 6 tokens"))
    playground.get_by_role("tab", name="Events").click()
    expect(playground.locator("#events")).to_contain_text("chat.completion.chunk")


def test_examples_are_offered_and_asked(playground):
    playground.get_by_role("button", name="Where is New York?").click()
    done(playground)
    expect(questions(playground)).to_have_text("Where is New York?")


def test_the_context_meter_shows_the_tokens_and_the_room(playground):
    ask(playground, "hi", max_tokens=4)
    expect(playground.locator(".meter")).to_have_text(re.compile(r"^\s*\d+ of [\d,]+ tokens\s*$"))


def test_a_refused_question_returns_to_the_box_with_a_sentence(playground):
    refuse(playground, 400, 5006, "AiError: AiError: Bad input: '/x' (5b5f3f6e-0000-4000-8000-1234567890ab)", times=1)
    say(playground, "a question")
    alert = playground.get_by_role("alert")
    expect(alert).to_contain_text("Bad input: '/x'.")
    expect(alert).not_to_contain_text("AiError")
    expect(box(playground)).to_have_value("a question")
    expect(replies(playground)).to_have_count(0)
    expect(playground.locator(".kept li")).to_have_count(0)


def test_a_full_window_offers_to_leave_out_the_oldest_turns(playground):
    ask(playground, "first")
    ask(playground, "second")
    refuse(playground, 413, 5021, TOO_LONG, times=1)
    say(playground, "third")
    expect(playground.get_by_role("alert")).to_contain_text("It has 2100 tokens, and the model takes 2048.")
    with playground.expect_request(RUN) as asked:
        playground.get_by_role("button", name="Leave out the oldest turns").click()
    contents = [message["content"] for message in asked.value.post_data_json["messages"]]
    assert contents[-1] == "third" and "first" not in contents
    done(playground)
    expect(playground.locator(".left-out")).not_to_have_count(0)


def test_a_full_window_offers_a_new_chat_with_the_question(playground):
    ask(playground, "first")
    refuse(playground, 413, 5021, TOO_LONG, times=1)
    say(playground, "second")
    playground.get_by_role("button", name="New chat with this question").click()
    expect(box(playground)).to_have_value("second")
    expect(questions(playground)).to_have_count(0)


def test_a_question_to_a_loading_model_is_sent_again(playground):
    refuse(playground, 503, 7009, "Upstream service unavailable", times=1)
    say(playground, "hi")
    expect(playground.get_by_role("status")).to_contain_text("still loading")
    done(playground)
    expect(replies(playground)).to_have_count(1)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (429, 3040, "The server is busy."),
        (500, 3000, "The model failed. The server's log has the cause."),
        (401, 10000, "The API token is wrong"),
        (403, 10000, "belongs to another account"),
        (400, 9106, "requires an API token"),
    ],
)
def test_errors_are_sentences(playground, status, code, expected):
    refuse(playground, status, code, "AiError: wire text", times=1)
    say(playground, "hi")
    expect(playground.get_by_role("alert")).to_contain_text(expected)
    expect(playground.get_by_role("alert")).not_to_contain_text("wire text")


def test_a_failure_during_the_stream_is_shown_beside_its_text(playground):
    error = {"response": "", "errors": [{"code": 3000, "message": "it broke"}], "success": False}
    answer_with(playground, [{"response": "one"}, error], end="")
    say(playground, "hi")
    expect(replies(playground)).to_contain_text("one")
    expect(replies(playground)).to_contain_text("The model failed.")
    expect(playground.get_by_role("alert")).to_contain_text("The model failed.")


def test_a_lost_connection_is_explained_and_can_be_retried(playground):
    answer_with(playground, [{"response": "half"}], end="")
    say(playground, "hi")
    expect(playground.get_by_role("alert")).to_contain_text("The connection was lost before the reply was complete.")
    expect(replies(playground)).to_contain_text("half")
    playground.unroute(RUN)
    playground.get_by_role("alert").get_by_role("button", name="Try again").click()
    done(playground)
    expect(replies(playground).locator(".versions")).to_contain_text("2/2")


def test_an_unreachable_server_is_explained_and_the_question_kept(playground):
    playground.route(RUN, lambda route: route.abort("connectionrefused"), times=1)
    say(playground, "hi")
    expect(playground.get_by_role("alert")).to_contain_text("The server does not answer.")
    playground.get_by_role("button", name="Try again").click()
    done(playground)
    expect(questions(playground)).to_have_text(["hi"])


def test_thoughts_are_folded(playground):
    answer_with(playground, [{"response": "", "reasoning_content": "Hmm, a river."}, {"response": "The Nile."}])
    ask(playground, "Name a river.")
    expect(replies(playground).get_by_text("Hmm, a river.")).to_be_hidden()
    playground.get_by_text("Thoughts").click()
    expect(replies(playground).get_by_text("Hmm, a river.")).to_be_visible()


def test_the_view_follows_the_reply_unless_the_reader_scrolled_up(playground):
    scroller = playground.locator("#thread")
    distance = "box => box.scrollHeight - box.scrollTop - box.clientHeight"
    answer_text(playground, "line\n\n" * 200)
    ask(playground, "hi")
    assert scroller.evaluate(distance) < 48
    scroller.evaluate("box => { box.scrollTop = 100; }")
    expect(playground.get_by_role("button", name="To the end")).to_be_visible()
    setting(playground, "Seed", "5")
    drawn(playground)
    assert scroller.evaluate("box => box.scrollTop") == 100
    ask(playground, "again")
    assert scroller.evaluate(distance) < 48


def test_a_long_first_question_does_not_hide_its_reply(playground):
    answer_text(playground, "Here it is.")
    ask(playground, "word " * 1500)
    expect(replies(playground).get_by_text("Here it is.")).to_be_in_viewport()
    expect(questions(playground)).to_have_class(re.compile("folded"))
    playground.get_by_role("button", name="Show all").click()
    expect(questions(playground)).not_to_have_class(re.compile("folded"))


def test_a_tool_is_called_and_its_result_continues_the_reply(playground):
    setting(playground, "Tools", '[{"name": "weather", "parameters": {"type": "object"}}]')
    call = {"id": "c1", "type": "function", "name": "weather", "arguments": {"city": "Rome"}}
    answer_with(playground, [{"response": "", "tool_calls": [call]}])
    with playground.expect_request(RUN) as asked:
        ask(playground, "What is the weather in Rome?")
    assert asked.value.post_data_json["tools"][0]["name"] == "weather"
    expect(replies(playground)).to_contain_text('"city": "Rome"')
    playground.unroute(RUN)
    playground.get_by_label("Result of weather").fill('{"degrees": 21}')
    with playground.expect_request(RUN) as asked:
        playground.get_by_role("button", name="Send the result").click()
    messages = asked.value.post_data_json["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[1]["tool_calls"][0]["id"] == messages[2]["tool_call_id"] == "c1"
    done(playground)
    expect(replies(playground)).to_have_count(2)


def test_events_of_the_responses_api_are_read(playground):
    delta = {"type": "response.output_text.delta", "delta": "The Nile."}
    usage = {"input_tokens": 5, "output_tokens": 3}
    end = {"type": "response.completed", "response": {"usage": usage}}
    body = stream_of([delta, end], end="")
    playground.route(RUN, lambda route: route.fulfill(status=200, body=body))
    ask(playground, "Name a river.")
    expect(replies(playground)).to_contain_text("The Nile.")
    expect(replies(playground)).to_contain_text("5 + 3 tokens")


def test_a_text_file_is_attached_as_a_block_of_code(playground):
    files = [{"name": "a.py", "mimeType": "text/x-python", "buffer": b"print(1)\n"}]
    box(playground).fill("What is this?")
    playground.locator("#attach").set_input_files(files)
    expect(box(playground)).to_have_value("What is this?\n\na.py\n```\nprint(1)\n```")


def test_a_file_that_is_no_text_is_refused(playground):
    files = [{"name": "a.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\n\0"}]
    playground.locator("#attach").set_input_files(files)
    expect(playground.get_by_role("alert")).to_contain_text("a.png is not a text file")
    expect(box(playground)).to_have_value("")
