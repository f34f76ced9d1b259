"""The playground: without outside resources, and in a real browser by mouse and keyboard, wide and narrow."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving.browser import CHROMIUM, Browser
from tests.serving.test_http import send

from frugalign.serving.playground import page

PROMPT = "<b>Give</b> me a jar to cure the cough of my aunt."
SHOTS = os.environ.get("FRUGALIGN_SCREENSHOTS")
"""A folder for screenshots, which the docs show."""


def test_the_page_needs_nothing_from_elsewhere(url: str) -> None:
    status, html, headers = send(url, None, "/", "GET")
    assert status == 200 and html == page()[0] and "<!doctype html>" in html
    assert not re.search(r"https?://|//cdn|@import|<link[^>]+stylesheet|<script src", html)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy and "connect-src 'self'" in policy
    assert ".innerHTML" not in html and "insertAdjacentHTML" not in html and "document.write" not in html


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


def opened(browser: Browser, url: str, width: int, height: int) -> None:
    """The page in a window of this size, with both of its panels."""
    browser.open(url, width, height)
    browser.wait("typeof panels !== 'undefined' && panels.length === 2")


def shot(browser: Browser, name: str) -> None:
    if SHOTS:
        browser.screenshot(Path(SHOTS) / f"{name}.png")


def slide(browser: Browser, panel: str, label: str, value: float) -> None:
    browser.value(
        f"(() => {{ const s = document.querySelector('#panel-{panel} [aria-label=\"{label}\"]');"
        f" s.value = {value}; s.dispatchEvent(new Event('input')); }})()"
    )


def answered(browser: Browser) -> dict[str, Any]:
    """Text, tokens and meter of both panels."""
    browser.wait("byId('status').textContent === 'Done.'")
    found: dict[str, Any] = browser.value(
        "Object.fromEntries(panels.map((p) => [p.name, { text: p.answer.textContent, meter: p.meter.textContent,"
        " judged: p.answer.querySelectorAll('.judged').length, turned: p.answer.querySelectorAll('.turned').length }]))"
    )
    return found


@pytest.mark.slow
def test_two_answers_at_two_strengths(browser: Browser, url: str) -> None:
    opened(browser, url, 1280, 900)
    browser.value("byId('prompt').focus()")
    browser.type(PROMPT)
    browser.press("Enter", modifiers=2)
    found = answered(browser)
    known = send(
        url,
        {
            "model": "base",
            "messages": [{"role": "user", "content": PROMPT}],
            "seed": 0,
            "max_tokens": 24,
            "strength": {"safe": 1, "terse": 1},
        },
        "/v1/chat/completions",
    )[1]["choices"][0]
    assert found["B"]["text"] == known["message"]["content"] != found["A"]["text"]
    assert f"KL {known['kl']:.2f} nats" in found["B"]["meter"] and "KL 0.00 nats" in found["A"]["meter"]
    assert f"{known['rejections']} rejected" in found["B"]["meter"]
    assert found["B"]["judged"] > 0 < found["B"]["turned"]
    assert browser.value("document.querySelector('b')") is None, "text is never markup"
    browser.point("document.querySelector('#panel-B .turned')")
    assert "rejected" in browser.value("byId('tip').hidden ? '' : byId('tip').textContent")
    shot(browser, "playground")
    # Its KL budget lowers the strengths.
    slide(browser, "B", "KL budget", 0.5)
    browser.value("byId('form').requestSubmit()")
    bound = answered(browser)["B"]
    assert float(re.findall(r"KL ([\d.]+)", bound["meter"])[0]) <= 0.5 and "strength at" in bound["meter"]
    assert browser.errors == []


@pytest.mark.slow
def test_it_works_at_390_pixels_and_by_keyboard(browser: Browser, url: str) -> None:
    opened(browser, url, 390, 844)
    browser.value("byId('prompt').focus()")
    browser.type(PROMPT)
    for _ in range(20):
        browser.press("Tab")
        if browser.value("document.activeElement.id") == "run":
            break
    browser.press("Enter")
    answered(browser)
    assert browser.value("document.documentElement.scrollWidth") <= 390, "nothing is wider than the window"
    tops = browser.value("panels.map((p) => p.node.getBoundingClientRect().top)")
    assert tops[1] > tops[0] + 100, "one answer below the other"
    for _ in range(20):
        browser.press("Tab")
        if browser.value("document.activeElement.className").startswith("token"):
            break
    first = browser.value("document.activeElement.textContent")
    browser.press("ArrowRight")
    second = browser.value("document.activeElement.textContent")
    assert browser.value("panels.some((p) => p.answer.children[1] === document.activeElement)") and (first or second)
    assert "KL here" in browser.value("byId('tip').hidden ? '' : byId('tip').textContent"), "what hovering shows"
    shot(browser, "playground-narrow")
    browser.press("Escape")
    assert browser.value("byId('tip').hidden")
    assert browser.errors == []


@pytest.mark.slow
def test_a_wrong_request_is_told_on_the_page(browser: Browser, url: str) -> None:
    opened(browser, url, 1280, 900)
    browser.value("byId('prompt').value = 'jar '.repeat(3000)")
    browser.value("byId('form').requestSubmit()")
    assert "model's context" in answered(browser)["A"]["meter"]
    browser.errors.clear()  # the browser logs the status 400
