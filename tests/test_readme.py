"""README.md is short and opens with the two commands. tests/docs/ checks its commands, links and figures."""

import re

from tests.support.processes import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_it_opens_with_one_sentence_and_the_two_commands():
    opening = README[:300]
    assert opening.index("make run") < opening.index("make test")
    assert len(opening.splitlines()[2]) <= 150


def test_it_shows_a_picture_of_the_playground():
    (picture,) = re.findall(r"\((docs/images/\S+\.png)\)", README)
    data = (ROOT / picture).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < 200_000
