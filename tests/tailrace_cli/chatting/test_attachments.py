"""Files that /file attaches to a question of `tailrace chat`."""

import pytest


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "my notes.txt"
    path.write_text("first\nsecond\n")
    return path


ATTACHED = "my notes.txt:\nfirst\nsecond\n\none"


def test_a_file_is_attached_to_the_next_question_only(type_in, notes):
    _, client, _, shown = type_in(f"/file {notes}", "/file", "one", "two")
    assert [message for _, message in client.last.messages] == [ATTACHED, f"re: {ATTACHED}", "two"]
    assert shown.err.count("my notes.txt (13 B)") == 2


def test_files_stay_attached_to_a_refused_question(type_in, notes):
    _, client, drafts, shown = type_in(f"/file {notes}", "no", "one")
    assert (drafts[2], client.last.messages) == ("no", [("user", ATTACHED)])
    assert "Still attached: my notes.txt" in shown.err


def test_an_edited_question_keeps_its_files(type_in, notes):
    _, client, drafts, _ = type_in(f"/file {notes}", "uno", "/edit", "one")
    assert (drafts[3], client.last.messages) == ("uno", [("user", ATTACHED)])


@pytest.mark.parametrize("between", [("/edit", "no"), ("/file FILE", "/edit")])
def test_an_edited_question_has_each_file_once(type_in, notes, between):
    _, client, _, _ = type_in(f"/file {notes}", "uno", *(line.replace("FILE", str(notes)) for line in between), "one")
    assert client.last.messages == [("user", ATTACHED)]


def test_files_are_removed_and_the_same_file_is_attached_once(type_in, notes):
    _, client, _, _ = type_in(f"/file {notes}", f"/file {notes}", "one", f"/file {notes}", "/file off", "/clear", "two")
    assert client.conversations == [[("user", ATTACHED)], [("user", "two")]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\x89PNG\xff", "it is not UTF-8 text."),
        (b"a\0b", "it is not text, because it contains zero bytes."),
        (b" \n", "it is empty."),
        (b"x" * 200_001, "it has 200001 bytes, and at most 200000 can be attached."),
        (b"x" * 3_000_000, "it has 3000000 bytes, and at most 200000 can be attached."),
    ],
)
def test_a_file_that_cannot_be_attached_is_refused(type_in, tmp_path, content, sentence):
    (tmp_path / "x").write_bytes(content)
    _, client, _, shown = type_in(f"/file {tmp_path / 'x'}", "one")
    assert f"/file {tmp_path / 'x'}: {sentence}" in shown.err
    assert client.last.messages == [("user", "one")]
