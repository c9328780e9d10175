"""`tailrace chat` with a client that repeats each prompt."""

import pytest


def test_each_message_follows_the_earlier_ones(talk):
    code, (_, second), shown = talk("one", "two")
    assert second == [("user", "one"), ("assistant", "re: one"), ("user", "two")]
    assert (code, shown.out) == (0, "re: one\nre: two\n")


def test_an_empty_line_does_not_end_the_input(talk):
    assert len(talk("one", "", "two")[1]) == 2


def test_clear_forgets_the_conversation_and_bye_ends_it(talk):
    _, conversations, _ = talk("one", "/clear", "two", "/bye", "three")
    assert conversations == [[("user", "one")], [("user", "two")]]


def test_quotation_marks_enclose_several_lines(talk):
    _, (first,), _ = talk('"""one', "", 'two"""')
    assert first == [("user", "one\n\ntwo")]


@pytest.mark.parametrize("line", ["no", "/nosuch"])
def test_a_refused_line_of_a_script_sets_the_exit_code_and_leaves_the_conversation(talk, line):
    code, conversations, shown = talk(line, "two")
    assert (code, conversations[-1]) == (1, [("user", "two")])
    assert "Refused." in shown.err or "no command /nosuch" in shown.err


def test_a_path_is_a_message(talk):
    assert talk("/etc/hosts is a file")[1] == [[("user", "/etc/hosts is a file")]]


def test_ctrl_c_ends_a_script(talk):
    with pytest.raises(KeyboardInterrupt):
        talk("cut", "two")


def test_a_reply_that_was_stopped_keeps_its_text(type_in):
    code, client, _, shown = type_in("cut", "two")
    assert client.conversations[1] == [("user", "cut"), ("assistant", "re: "), ("user", "two")]
    assert code == 0 and "keeps the text so far" in shown.err


@pytest.mark.parametrize("message", ["no", "break", "early"])
def test_a_question_without_an_answer_returns_to_the_editor(type_in, message):
    _, client, drafts, _ = type_in("one", message, "two")
    assert drafts[2] == message
    assert client.conversations[-1] == [("user", "one"), ("assistant", "re: one"), ("user", "two")]


@pytest.mark.parametrize("messages", [("^C", "^C"), ("cut", "^C")])
def test_ctrl_c_twice_ends_with_130(type_in, messages):
    assert type_in(*messages, "never read")[0] == 130


def test_a_message_between_two_ctrl_c_continues_the_chat(type_in):
    code, client, _, shown = type_in("^C", "one", "^C")
    assert (code, len(client.conversations)) == (0, 1)
    assert "Ctrl-C again or Ctrl-D ends" in shown.err


def test_the_oldest_messages_are_dropped_with_a_note(type_in):
    _, client, _, shown = type_in("one", "two", "three", window=3)
    assert client.conversations[-1] == [("user", "two"), ("assistant", "re: two"), ("user", "three")]
    assert "The oldest 2 messages no longer fit" in shown.err


def test_a_question_that_is_too_long_alone_changes_nothing(type_in):
    _, client, drafts, shown = type_in("one", "/system x", "two", window=1)
    assert (drafts[-1], client.conversations) == ("two", [[("user", "one")]])
    assert "Too long." in shown.err


def test_the_room_and_the_cut_are_reported(type_in):
    shown = type_in("one")[3]
    assert "58 of 100 tokens of context left" in shown.err
    assert "The reply was cut after 2 tokens" in shown.err


def test_regenerate_asks_the_last_question_again(type_in):
    _, client, _, _ = type_in("one", "two", "/regenerate", "three")
    assert client.conversations[2] == client.conversations[1]
    assert client.conversations[3][:-1] == [*client.conversations[1], ("assistant", "re: two")]


def test_an_edited_question_replaces_the_last_one(type_in):
    _, client, drafts, _ = type_in("one", "/edit", "uno", "two")
    assert drafts[2] == "one"
    assert client.conversations[-1] == [("user", "uno"), ("assistant", "re: uno"), ("user", "two")]


def test_an_edited_question_that_was_refused_still_replaces_the_last_one(type_in):
    _, client, drafts, _ = type_in("one", "/edit", "no", "uno", "two")
    assert drafts[3] == "no"
    assert client.conversations[-1] == [("user", "uno"), ("assistant", "re: uno"), ("user", "two")]


def test_commands_change_the_next_request(type_in):
    _, client, _, _ = type_in(
        "/set top-p 0.5", "/set stop END", "/system Be brief.", '/schema {"a": 1}', "/model other", "q"
    )
    request = client.last
    assert (request.model, request.system, request.schema) == ("@cf/meta/other", "Be brief.", '{"a": 1}')
    assert (request.sampling, request.stop) == ({"top_p": 0.5}, ("END",))


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("/set temperature 9", "temperature: must be 0 to 5."),
        ("/set max_tokens many", "'many' is not an integer"),
        ("/set tempratur 1", "Did you mean temperature?"),
        ("/sett", "There is no command /sett. Did you mean /set?"),
        ("/model nosuch", "The server has no model nosuch."),
        ("/load nosuch.json", "nosuch.json cannot be read"),
        ("/schema [1]", "/schema [1] is neither"),
        ("/regenerate", "There is no reply to generate again."),
        ("/continue", "There is no reply to continue."),
        ("/file nosuch.txt", "/file nosuch.txt: No such file or directory."),
        ("/file .", "/file .: it is a folder."),
        ("/file /dev/zero", "/file /dev/zero: it is no regular file."),
        ("/copy", "There is no reply to copy."),
        ("/save", "/save needs the name of a file."),
    ],
)
def test_a_wrong_command_changes_nothing(type_in, command, sentence):
    _, client, _, shown = type_in(command, "q")
    assert sentence in shown.err
    assert (client.last.sampling, client.last.schema, client.last.model) == ({}, None, "@cf/meta/echo")


def test_a_short_name_is_enough(talk):
    assert "Talking to @cf/meta/echo." in talk("", model="echo")[2].err


def test_a_cut_reply_is_continued_until_it_is_complete(type_in):
    _, client, _, shown = type_in("one", "/continue", "/continue", "two")
    assert client.conversations[1] == [("user", "one"), ("assistant", "re: one")]
    assert client.conversations[2] == [("user", "one"), ("assistant", "re: one and more"), ("user", "two")]
    assert "re: one\n and more\n" in shown.out
    assert "/continue continues it" in shown.err and "The last reply is complete" in shown.err


@pytest.mark.parametrize("message", ["refuse the rest", "cut"])
def test_a_stopped_reply_is_continued_and_a_refused_rest_changes_nothing(type_in, message):
    _, client, drafts, _ = type_in(message, "/continue", "two")
    answer = "re: refuse the rest" if message != "cut" else "re:  and more"
    assert client.conversations[-1] == [("user", message), ("assistant", answer), ("user", "two")]
    assert drafts == [""] * 4


def test_the_messages_before_a_continued_reply_are_dropped_if_there_is_no_room(type_in):
    _, client, _, _ = type_in("one", "two", "/continue", window=3)
    assert client.conversations[-1] == [("user", "two"), ("assistant", "re: two")]
    _, client, _, shown = type_in("one", "/continue", "/clear", "two", window=1)
    assert "Too long." in shown.err and client.conversations[-1] == [("user", "two")]


def test_a_reply_with_a_schema_is_not_continued(type_in):
    _, client, _, shown = type_in('/schema {"a": 1}', "one", "/continue")
    assert len(client.conversations) == 1
    assert "cannot be continued" in shown.err and "/continue continues it" not in shown.err
