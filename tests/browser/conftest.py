"""Fixtures for every test of this folder: a running stack and the system's Chromium without a window."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.chat import DESKTOP
from tests.e2e.stack import Stack, short_catalog

_ARGUMENTS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_TIMEOUT_MILLISECONDS = 20_000
# Long enough to stop a reply in the middle, also while the browser is slow. Other tests limit their replies themselves.
_SEQUENCE_LENGTH = 512
expect.set_options(timeout=_TIMEOUT_MILLISECONDS)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"), short_catalog(_SEQUENCE_LENGTH))
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[..., Browser]]:
    """Return a function that starts a browser, with additional command-line arguments."""
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not executable:
        pytest.fail("Chromium is not installed: install Debian's package chromium, or set CHROMIUM to another's path.")
    with sync_playwright() as playwright:
        browsers: list[Browser] = []

        def start(*arguments: str) -> Browser:
            browsers.append(playwright.chromium.launch(executable_path=executable, args=[*_ARGUMENTS, *arguments]))
            return browsers[-1]

        yield start
        for browser in browsers:
            browser.close()


@pytest.fixture(scope="session")
def browser(launch: Callable[..., Browser]) -> Browser:
    return launch()


@pytest.fixture
def playground(browser: Browser, stack: Stack) -> Iterator[Page]:
    """Open the playground on a desktop. A script error or a request to another host fails the test."""
    with _opened(browser, stack) as page:
        yield page


@contextmanager
def _opened(browser: Browser, stack: Stack) -> Iterator[Page]:
    context = browser.new_context(base_url=f"http://{stack.http_address}", viewport=DESKTOP)
    context.set_default_timeout(_TIMEOUT_MILLISECONDS)
    wrong: list[str] = []
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    context.on("request", lambda request: None if _is_own(request.url, stack) else wrong.append(request.url))
    page = context.new_page()
    page.goto("/")
    expect(page.get_by_role("status")).to_have_text("Ready.")
    yield page
    context.close()
    assert wrong == []


def _is_own(url: str, stack: Stack) -> bool:
    return url.startswith((f"http://{stack.http_address}/", "data:", f"blob:http://{stack.http_address}/"))


@pytest.fixture
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    """Open a page with relative addresses below the web app. A script error on it fails the test."""
    context = browser.new_context(base_url=f"http://{stack.web_address}")
    context.set_default_timeout(_TIMEOUT_MILLISECONDS)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []
