"""The API reference in a real browser."""

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


@pytest.fixture
def reference(playground):
    playground.goto("/docs")
    expect(playground.get_by_role("status")).not_to_contain_text("…")
    return playground


def test_the_reference_names_every_route(reference):
    main = reference.get_by_role("main")
    described = reference.evaluate("async () => (await (await fetch('openapi.json')).json()).paths")
    for path in described:
        expect(main).to_contain_text(path)
    headings = reference.get_by_role("heading", level=2)
    expect(headings.filter(has_text="POST /client/v4/accounts/{account}/ai/run/{model}")).to_have_count(1)
    expect(reference.locator("body")).not_to_contain_text(re.compile(r"\b1 characters"))


def test_the_contents_lead_to_each_section(reference):
    links = reference.get_by_role("navigation", name="Contents").get_by_role("link")
    targets = [link.get_attribute("href")[1:] for link in links.all()]
    assert len(targets) == len(set(targets)) == reference.locator("main section").count()
    links.filter(has_text="/v1/chat/completions").click()
    expect(reference.locator("#post-v1-chat-completions")).to_be_in_viewport()


def test_an_address_with_an_anchor_opens_its_section(reference):
    reference.goto("/healthz")
    reference.goto("/docs#post-v1-responses")
    expect(reference.locator("#post-v1-responses h2")).to_be_in_viewport()


def test_a_route_has_an_example_body_and_a_stream(reference):
    section = reference.locator("#post-v1-chat-completions")
    expect(section.get_by_role("region", name="Example body")).to_contain_text('"messages"')
    section.get_by_text("Example stream").click()
    expect(section.get_by_role("region", name="Stream")).to_contain_text("data: [DONE]")
    section.get_by_text(re.compile(r"Chat completion: \d+ fields")).click()
    expect(section.get_by_role("rowheader", name="temperature")).to_be_visible()


def test_the_page_is_no_longer_than_a_few_screens(reference):
    assert reference.evaluate("document.documentElement.scrollHeight") < 7000
