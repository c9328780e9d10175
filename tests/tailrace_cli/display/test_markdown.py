"""Markdown in a terminal: the styles, and that they do not depend on the pieces of a stream."""

import itertools
import random
import re

import pytest

from tailrace_cli.display.markdown import MarkdownStyler

TEXT = """# Title **x**
Some *italic*, **bold and `code`**, `a*b*c`, snake_case_name, 2 * 3 * 4, f(**kwargs), \\*not\\*, __init__.py
* one
- two **bold**
1. three

```python
def f(*a, **k):
    return a * 2 ** 3  # `x`
```
after **unclosed
> quote `x`
---
漢字 **太字** 😀 C:\\temp
end *ok*"""


def styled(text, sizes=None):
    styler = MarkdownStyler()
    if sizes is None:
        return styler.feed(text) + styler.finish()
    out, position = "", 0
    while position < len(text):
        size = next(sizes)
        out += styler.feed(text[position : position + size])
        position += size
    return out + styler.finish()


@pytest.mark.parametrize("seed", range(20))
def test_the_styles_do_not_depend_on_the_pieces(seed):
    draw = random.Random(seed)
    assert styled(TEXT, iter(lambda: draw.randint(1, 9), None)) == styled(TEXT)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("**b** *i* `c`", "\033[1mb\033[0m \033[3mi\033[0m \033[36mc\033[0m"),
        ("# T\nx", "\033[1m# T\033[0m\nx"),
        ("* a", "• a"),
        ("***b***", "\033[1m\033[3mb\033[0m"),
        ("2 * 3 * 4, a_b_c, f(**k), __init__.py, **", "2 * 3 * 4, a_b_c, f(**k), __init__.py, **"),
        ("\\*x\\* \\d", "*x* \\d"),
    ],
)
def test_a_span_is_styled_and_other_characters_stay(text, shown):
    assert styled(text) == shown


def test_a_code_block_keeps_its_characters():
    block = "```c\nint *a = **b;  // `x` # _y_\n\n  * z\n```\n"
    assert re.sub(r"\033\[\d+m", "", styled(block)) == block


def test_words_do_not_wait_for_the_end_of_the_line():
    styler = MarkdownStyler()
    assert styler.feed("Hello wor") == "Hello wor"
    assert styler.feed("ld, **bo") == "ld, "
    assert styler.feed("ld** x") == "\033[1mbold\033[0m x"


def test_an_unclosed_marker_waits_for_a_bounded_text():
    styler = MarkdownStyler()
    assert "word" in "".join(styler.feed("**word ") for _ in range(60))


def test_emphasis_longer_than_a_styler_waits_for_is_plain_however_it_arrives():
    for mark in ("*", "`"):
        text = f"a {mark}{'b' * 300}{mark} c\n"
        assert styled(text) == styled(text, itertools.repeat(1)) == text
