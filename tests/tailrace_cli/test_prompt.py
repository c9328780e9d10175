"""Model and prompt of `tailrace run`: words of the command line, piped input, short names, schemas."""

import io

import pytest

from tailrace_cli.client import ModelLine, full_name
from tailrace_cli.errors import Failure, UnknownName
from tailrace_cli.prompt import divide, read_prompt, schema_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Models:
    """A client whose server has three models, the first of them for embeddings."""

    def models(self):
        names = ["@cf/baai/bge-m3", "@cf/meta/llama-3-8b", "local"]
        return [ModelLine(name, "", 1, 1, dimensions=3 if "bge" in name else 0) for name in names]


@pytest.mark.parametrize(
    ("words", "option", "model", "prompt"),
    [
        (["m", "hello", "you"], None, "m", ["hello", "you"]),
        (["m"], None, "m", []),
        (["where is new york?"], None, "", ["where is new york?"]),
        ([], None, "", []),
        (["hello", "you"], "m", "m", ["hello", "you"]),
        (["", "Hello"], None, "", ["Hello"]),
    ],
)
def test_the_first_word_is_the_model_unless_it_contains_a_space(words, option, model, prompt):
    assert divide(words, option) == (model, prompt)


@pytest.mark.parametrize(
    ("words", "piped", "prompt"),
    [
        (["summarise:"], "a file\n", "a file\n\nsummarise:"),
        ([], "a file\n", "a file\n"),
        (["-"], "a file", "a file"),
        (["two", "words"], "", "two words"),
        (["two", "words"], "\n", "two words"),
    ],
)
def test_piped_input_precedes_the_words(monkeypatch, words, piped, prompt):
    monkeypatch.setattr("sys.stdin", io.StringIO(piped))
    assert read_prompt(words) == prompt


def test_a_terminal_is_read_only_on_request(monkeypatch):
    monkeypatch.setattr("sys.stdin", Terminal("typed"))
    assert read_prompt(["words"]) == "words"
    assert read_prompt(["-"]) == "typed"


def test_a_prompt_without_text_is_refused(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    with pytest.raises(Failure, match=r"The prompt is empty\."):
        read_prompt([])


@pytest.mark.parametrize(
    ("name", "found"),
    [("", "@cf/meta/llama-3-8b"), ("llama-3-8b", "@cf/meta/llama-3-8b"), ("local", "local"), ("@cf/x/y", "@cf/x/y")],
)
def test_short_names_mean_served_models(name, found):
    assert full_name(Models(), name) == found


def test_a_model_that_is_not_served_is_refused_with_those_that_are():
    with pytest.raises(UnknownName, match=r"The server has no model hello\. The server has @cf/baai/bge-m3, @cf/meta"):
        full_name(Models(), "hello")
    with pytest.raises(UnknownName, match=r"Did you mean @cf/meta/llama-3-8b\?"):
        full_name(Models(), "lama-3-8b")


def test_a_schema_is_json_or_a_file(tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    assert schema_text('{"type": "object"}') == schema_text(str(tmp_path / "schema.json"))
    assert schema_text(None) is None
    for wrong in ("{", "missing.json", "[]", "{" * 100_000):
        with pytest.raises(Failure, match="--schema"):
            schema_text(wrong)


def test_files_precede_the_piped_input_and_the_words(monkeypatch, tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.txt").write_text("é\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("piped\n"))
    files = [str(tmp_path / name) for name in ("a.py", "b.txt")]
    assert read_prompt(["compare"], files) == "a.py:\nx = 1\n\nb.txt:\né\n\npiped\n\ncompare"


@pytest.mark.parametrize("name", ["missing.txt", ".", "binary"])
def test_a_file_that_is_not_text_is_named(monkeypatch, tmp_path, name):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(Failure, match=f"^-f {name}: "):
        read_prompt(["x"], [name])


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_piped_bytes_that_are_not_text_are_refused(monkeypatch, errors):
    piped = io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", piped)
    with pytest.raises(Failure, match="standard input is not UTF-8 text"):
        read_prompt(["x"])
