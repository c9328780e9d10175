"""Replies as Markdown: what is drawn, and that no reply can put markup, scripts or requests into the page."""

import pytest
from playwright.sync_api import expect

from tests.browser.chat import answer_text, ask, replies

pytestmark = pytest.mark.browser

REPLY = """# Title

Some *emphasis*, **weight**, ~~struck~~, `inline <b>` &amp; &lt;i&gt; &#x41;.

1. first
2. second
   - [x] done
   - [ ] open

> quoted

| a | b |
|---|--:|
| 1 | <u>2</u> |

```python
def f(x):  # comment
    return "<script>alert(1)</script>"
```

[link](https://example.com/a?b=1&amp;c=2) and ![picture](https://example.com/x.png)
"""
# Ways in which a reply might reach the page. `title` is a harmless effect that the test looks for.
ATTACKS = [
    "<script>document.title='run'</script>",
    "<img src=x onerror=\"document.title='run'\">",
    "<svg onload=\"document.title='run'\">",
    "<svg><script>document.title='run'</script></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=document.title='run'>",
    "<iframe srcdoc=\"<script>parent.document.title='run'</script>\"></iframe>",
    "<a href=\"javascript:document.title='run'\">click</a>",
    "[click](javascript:document.title='run')",
    "[click](JaVaScRiPt:document.title='run')",
    "[click](java\tscript:document.title='run')",
    "[click](&#106;avascript:document.title='run')",
    "[click](&#x6A&#x61&#x76&#x61script:document.title='run')",
    "[click](vbscript:document.title='run')",
    "[click](data:text/html,<script>parent.document.title='run'</script>)",
    "[click](blob:null/x)",
    "[click](//evil.example/x)",
    "[click](https://user@evil.example\"onmouseover=\"document.title='run')",
    "![x](javascript:document.title='run')",
    "![x](https://evil.example/steal.png)",
    "![x\" onerror=\"document.title='run'](x)",
    "[x]: javascript:document.title='run'\n\n[x]",
    "<javascript:document.title='run'>",
    "<https://evil.example/\"onclick=\"document.title='run'>",
    "```\"><img/src=x/onerror=document.title='run'>\ncode\n```",
    "```html\n<script>document.title='run'</script>\n```",
    "`<img src=x onerror=document.title='run'>`",
    "| <img src=x onerror=document.title='run'> |\n|---|\n| <script>document.title='run'</script> |",
    "- [x] <img src=x onerror=document.title='run'>",
    "<details open ontoggle=\"document.title='run'\">",
    "<style>body { display: none }</style><link rel=stylesheet href=//evil.example/x.css>",
    "<form action=//evil.example><input autofocus onfocus=\"document.title='run'\">",
    "<base href=//evil.example/><meta http-equiv=refresh content='0;url=//evil.example'>",
    "<div id=app></div><div id=prompt name=body>",
    "&lt;script&gt;document.title='run'&lt;/script&gt;",
    "\u0000<scr\u0000ipt>document.title='run'</script>",
    "{{constructor.constructor('document.title=1')()}} ${document.title='run'}",
    "\u202e<img src=x onerror=document.title='run'>",
]
# Elements that a reply may consist of. Every other element would come from its markup.
ALLOWED = (
    "DIV P H3 H4 H5 H6 UL OL LI BLOCKQUOTE TABLE THEAD TBODY TR TH TD HR BR STRONG EM DEL CODE PRE FIGURE FIGCAPTION SPAN "
    "BUTTON A INPUT"
).split()
ELEMENTS = "root => [...root.querySelectorAll('*')].map(element => element.tagName)"
ATTRIBUTES = """root => [...root.querySelectorAll('*')].flatMap(each => [...each.attributes].map(({name}) => name))"""
HREFS = "root => [...root.querySelectorAll('[href]')].map(element => element.protocol)"


def test_markdown_is_drawn(playground):
    answer_text(playground, REPLY)
    ask(playground, "hi")
    reply = replies(playground).locator(".markdown")
    expect(reply.get_by_role("heading", name="Title")).to_be_visible()
    expect(reply.locator("p code").first).to_have_text("inline <b>")
    expect(reply.locator("p").first).to_contain_text("& <i> A.")
    expect(reply.locator("td").nth(1)).to_have_text("<u>2</u>")
    expect(reply.locator("ol li")).to_have_count(4)
    expect(reply.get_by_label("Done")).to_be_checked()
    expect(reply.get_by_role("link", name="link")).to_have_attribute("href", "https://example.com/a?b=1&c=2")
    expect(reply.get_by_role("link", name="[picture: picture]")).to_be_visible()


def test_code_has_its_language_colours_and_a_copy_button(playground):
    playground.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answer_text(playground, REPLY)
    ask(playground, "hi")
    block = replies(playground).locator("figure.code")
    expect(block.locator("figcaption span")).to_have_text("python")
    expect(block.locator(".key").first).to_have_text("def")
    assert "mono" in block.locator("pre").evaluate("element => getComputedStyle(element).fontFamily").lower()
    block.get_by_role("button", name="Copy code").click()
    expect(block.get_by_role("button")).to_have_text("Copied")
    copied = playground.evaluate("navigator.clipboard.readText()")
    assert copied == 'def f(x):  # comment\n    return "<script>alert(1)</script>"'


def test_no_attack_leaves_an_element_a_handler_or_a_request(playground):
    answer_text(playground, "\n\n".join(ATTACKS))
    ask(playground, "hi")
    reply = replies(playground).locator(".markdown")
    assert set(reply.evaluate(ELEMENTS)) <= set(ALLOWED)
    names = set(reply.evaluate(ATTRIBUTES))
    assert not [name for name in names if name.startswith("on") or name in ("src", "style", "id", "name", "srcdoc")]
    assert set(reply.evaluate(HREFS)) <= {"https:"}
    for link in reply.get_by_role("link").all():
        assert "noopener" in (link.get_attribute("rel") or "")
    assert playground.title() == "Tailrace playground"


def test_no_attack_alone_has_an_effect(playground):
    for attack in ATTACKS:
        answer_text(playground, attack)
        ask(playground, attack)
    thread = playground.locator("#turns")
    assert set(thread.locator(".markdown").last.evaluate(ELEMENTS)) <= set(ALLOWED)
    assert set(thread.evaluate(ELEMENTS)) <= {*ALLOWED, "LABEL"}
    assert set(thread.evaluate(HREFS)) <= {"https:"}
    assert playground.title() == "Tailrace playground"


@pytest.mark.parametrize("text", [">" * 20_000, "- " * 10_000, "[" * 20_000, "*a " * 20_000, "`" * 20_001, "|a" * 9000])
def test_hostile_nesting_is_shown_and_leaves_the_page_alive(playground, text):
    answer_text(playground, text)
    ask(playground, "hi")
    expect(replies(playground).locator(".markdown, .plain")).to_have_count(1)
    expect(playground.get_by_role("button", name="New chat")).to_be_enabled()


def test_text_from_right_to_left_is_aligned_to_the_right(playground):
    answer_text(playground, "שלום עולם\n\nEnglish.\n\n1. ראשון\n2. שני")
    ask(playground, "مرحبا")
    blocks = replies(playground).locator(".markdown > *")
    directions = [each.evaluate("element => getComputedStyle(element).direction") for each in blocks.all()]
    assert directions == ["rtl", "ltr", "rtl"]
    question = playground.locator("#turns .user .text")
    assert question.evaluate("element => getComputedStyle(element).direction") == "rtl"


def test_a_list_keeps_its_first_number(playground):
    answer_text(playground, "0. zero\n1. one")
    ask(playground, "hi")
    expect(replies(playground).locator("ol")).to_have_attribute("start", "0")
