"""A real browser: Debian's Chromium, driven by Playwright, that records what a page must not do."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.waiting import PATIENCE_SECONDS, eventually

WIDE, NARROW = (1280, 900), (390, 844)

_HARMLESS = ("Password forms should have",)
"""Advice of Chromium that does not fit: a token has no user."""


@dataclass(slots=True)
class Visit:
    """A browser that visits one server.

    Attributes:
        page: The page, of Playwright.
        origin: The server.
        complaints: What the console says, errors of scripts, and requests to anywhere else.
    """

    page: Any
    origin: str
    complaints: list[str] = field(default_factory=list)

    async def open(self, path: str) -> None:
        """Open a page."""
        await self.page.goto(self.origin + path)

    async def follow(self, link: Any) -> None:
        """Click a link, or a button that sends a form, and wait for the page that it leads to."""
        async with self.page.expect_navigation():
            await link.click()

    async def enter(self) -> None:
        """Press Enter, and wait for the page that it leads to."""
        async with self.page.expect_navigation():
            await self.page.keyboard.press("Enter")

    async def text(self, selector: str) -> str:
        """Return the text of an element, with single spaces."""
        return " ".join((await self.page.locator(selector).first.inner_text()).split())

    async def wait_for(self, script: str) -> None:
        """Wait until a script returns something true."""
        # Not with `wait_for_function`, whose polls the policy of the pages forbids.
        await eventually(lambda: self.page.evaluate(script), lambda: script)

    def _note(self, kind: str, text: str) -> None:
        if not any(harmless in text for harmless in _HARMLESS):
            self.complaints.append(f"{kind}: {text}")

    def listen(self) -> None:
        """Record what the page must not do."""
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self._note("error", str(error)))
        self.page.on("request", lambda request: self._look_at(request.url))

    def _look_at(self, address: str) -> None:
        if not address.startswith((self.origin, "data:")):
            self._note("request", address)


@asynccontextmanager
async def chromium() -> AsyncIterator[Any]:
    """Return a context manager with a browser; the test skips where there is none."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    async with playwright.async_playwright() as running:
        browser = await running.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def visiting(browser: Any, port: int, size: tuple[int, int] = WIDE, **options: Any) -> AsyncIterator[Visit]:
    """Return a context manager for a visit, with cookies of its own, that may not give a reason to complain.

    Args:
        browser: The browser.
        port: That of the server.
        size: The width and the height of the window.
        options: Further ones of Playwright, such as `color_scheme`.
    """
    context = await browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    try:
        visit = Visit(await context.new_page(), f"http://127.0.0.1:{port}")
        visit.listen()
        yield visit
        assert visit.complaints == []
    finally:
        await context.close()
