"""The pages for everyone: keyboard, screen readers, phones, colour schemes, print; and how soon something is drawn."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.chat import DESKTOP, PHONE, answer_text, answer_without_end, ask, box, questions, replies, say
from tests.browser.test_markdown import REPLY

pytestmark = pytest.mark.browser


def serious(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [
        f"{item['id']}: {item['nodes'][0]['target']}" for item in found if item["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious(playground, scheme, size):
    playground.emulate_media(color_scheme=scheme)
    assert serious(playground) == []
    answer_text(playground, REPLY)
    ask(playground, "hi")
    playground.set_viewport_size(size)
    playground.get_by_role("tab", name="Events").click(force=True)
    assert serious(playground) == []
    playground.goto("/docs")
    expect(playground.get_by_role("status")).not_to_contain_text("…")
    assert serious(playground) == []


@pytest.mark.parametrize("view", ["Settings", "curl", "dialog", "list"])
def test_axe_finds_nothing_serious_in_the_views_of_a_phone(playground, view):
    playground.set_viewport_size(PHONE)
    playground.reload()
    expect(playground.get_by_role("status")).to_have_text("Ready.")
    if view == "list":
        playground.get_by_role("button", name="Chats").click()
    elif view == "dialog":
        playground.keyboard.press("Control+/")
    else:
        playground.get_by_role("button", name="Settings", exact=True).click()
        playground.get_by_role("tab", name=view).click()
    assert serious(playground) == []


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_on_a_phone_nothing_is_wider_than_the_screen(playground, path):
    playground.set_viewport_size(PHONE)
    playground.goto(path)
    expect(playground.get_by_role("status")).not_to_contain_text("…")
    assert playground.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_on_a_phone_the_model_is_in_view_and_the_panels_are_closed(playground):
    playground.set_viewport_size(PHONE)
    playground.reload()
    expect(playground.get_by_label("Model", exact=True)).to_be_in_viewport()
    expect(box(playground)).to_be_in_viewport()
    expect(playground.locator("#panel")).to_be_hidden()
    playground.get_by_role("button", name="Settings", exact=True).click()
    expect(playground.get_by_label("Temperature")).to_be_visible()
    playground.keyboard.press("Escape")
    expect(playground.locator("#panel")).to_be_hidden()


def test_the_box_is_reached_by_the_keyboard_first(playground):
    expect(box(playground)).to_be_focused()
    skip = playground.get_by_role("link", name="Skip to the message box")
    skip.focus()
    expect(skip).to_be_in_viewport()
    skip.press("Enter")
    expect(box(playground)).to_be_focused()


def test_keys_open_a_new_chat_the_search_and_their_list(playground):
    ask(playground, "one")
    playground.keyboard.press("Control+K")
    expect(playground.get_by_label("Search conversations")).to_be_focused()
    playground.keyboard.press("Shift+Escape")
    expect(box(playground)).to_be_focused()
    playground.keyboard.press("Control+Shift+O")
    expect(questions(playground)).to_have_count(0)
    playground.keyboard.press("Control+/")
    expect(playground.get_by_role("dialog", name="Keys")).to_be_visible()
    playground.keyboard.press("Escape")
    expect(playground.get_by_role("dialog", name="Keys")).to_be_hidden()


def test_tabs_follow_the_arrow_keys(playground):
    playground.get_by_role("tab", name="Events").focus()
    playground.keyboard.press("ArrowRight")
    expect(playground.get_by_role("tab", name="curl")).to_have_attribute("aria-selected", "true")
    expect(playground.locator("#code")).to_be_visible()


def test_a_screen_reader_hears_the_state_and_not_each_token(playground):
    watch = """() => {
        window.heard = [];
        const live = document.querySelector("[role=status]");
        new MutationObserver(() => window.heard.push(live.textContent))
            .observe(live, {childList: true, characterData: true, subtree: true});
    }"""
    playground.evaluate(watch)
    ask(playground, "Tell me a story.", max_tokens=40)
    assert set(playground.evaluate("window.heard")) <= {"Waiting for the first token…", "Writing…", "Ready."}
    assert playground.locator("#turns [aria-live], #thread[aria-live]").count() == 0


@pytest.mark.parametrize(("motion", "animation"), [("reduce", "none"), ("no-preference", "blink")])
def test_the_cursor_blinks_only_where_motion_is_welcome(playground, motion, animation):
    playground.emulate_media(reduced_motion=motion)
    answer_without_end(playground, "Once upon a time")
    say(playground, "Write a very long story.")
    expect(replies(playground).locator(".running .markdown")).not_to_be_empty()
    name = "getComputedStyle(document.querySelector('.running .markdown > :last-child'), '::after').animationName"
    assert playground.evaluate(name) == animation
    playground.keyboard.press("Escape")


def test_a_printed_page_has_the_conversation_alone(playground):
    answer_text(playground, "line\n\n" * 100)
    ask(playground, "hi")
    playground.emulate_media(media="print")
    expect(playground.locator("#panel")).to_be_hidden()
    expect(box(playground)).to_be_hidden()
    assert playground.evaluate("document.documentElement.scrollHeight") > 2000


def test_the_pages_arrive_compressed_and_small(playground):
    sizes = """() => performance.getEntriesByType("resource").filter(entry => entry.name.includes("/playground/"))
        .reduce((sum, entry) => sum + entry.encodedBodySize, 0)"""
    assert 0 < playground.evaluate(sizes) < 60_000
