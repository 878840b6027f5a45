"""The page, in a browser that shows no window; skipped where Playwright or Chromium is not installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_app import running, service

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def say(page: Any, text: str, turns: int) -> None:
    page.get_by_label("Your turn").fill(text)
    page.get_by_role("button", name="Send").click()
    playwright.expect(page.locator(".acts")).to_have_count(turns, timeout=30_000)


def test_a_visitor_talks_takes_back_and_branches(browser: Any, tmp_path: Path) -> None:
    with running(service()) as address:
        page = browser.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(address) else None)
        page.goto(address)
        for number, text in enumerate(("My name is Anna.", "I live in Oslo.", "What is my name?"), start=1):
            say(page, text, number)
        said = page.locator(".said")
        assert said.last.inner_text() == "Your name is Anna."
        assert page.locator("svg circle").count() == 6
        assert "times smaller." in page.locator("#sizes").inner_text()
        page.get_by_role("button", name="Go on from here").first.click()
        playwright.expect(page.locator(".acts")).to_have_count(1)
        say(page, "Where do I live?", 2)
        assert "Oslo" not in said.last.inner_text(), "that turn is no longer of the branch"
        page.get_by_role("button", name="Take back").last.click()
        playwright.expect(page.locator(".acts")).to_have_count(1)
        say(page, "What is my name?", 2)
        assert said.last.inner_text() == "Your name is Anna."
        assert not wrong
        page.close()


def test_a_key_is_asked_for_where_the_server_wants_one(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    with running(service(), tmp_path / "keys") as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_label("API key").fill("secret")
        page.get_by_label("API key").press("Tab")
        playwright.expect(page.locator("#model")).to_contain_text("builtin")
        say(page, "Hello!", 1)
        page.close()
