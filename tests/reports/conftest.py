"""A real browser that opens the pages as a reader does, and says what it complained about or tried to load."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # WebGL 2 in software, for the viewer of volumes.
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
DESKTOP, PHONE = (1280, 900), (390, 844)


@dataclass
class OpenPage:
    """A page in the browser.

    Attributes:
        page: playwright's page.
        complaints: errors and warnings of the console, and uncaught exceptions.
        requests: every address asked for besides the file itself and data that it holds.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def scrolls_sideways(self) -> bool:
        """Whether the page as a whole is wider than the window."""
        wider = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        return bool(self.page.evaluate(wider))

    def texts(self, selector: str) -> list[str]:
        """Text of all visible elements that match."""
        return [e.inner_text() for e in self.page.locator(selector).all() if e.is_visible()]

    def require_quiet(self) -> None:
        """Fail where the browser complained or the page asked for anything."""
        assert self.complaints == []
        assert self.requests == []


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium, started once: USD_TEST_CHROMIUM, else chromium or google-chrome on the PATH; skips without."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    executable = os.environ.get("USD_TEST_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("no Chromium on the PATH; set USD_TEST_CHROMIUM to its executable")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., OpenPage]]:
    """`open_page(path, size=DESKTOP, dark=False)` opens a file; contexts are closed at the end of the test."""
    contexts = []

    def open_file(path: Path, size: tuple[int, int] = DESKTOP, dark: bool = False) -> OpenPage:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            is_mobile=size[0] < 600,
            has_touch=size[0] < 600,
        )
        contexts.append(context)
        opened = OpenPage(context.new_page())
        page, address = opened.page, path.resolve().as_uri()
        page.on("console", lambda m: opened.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        page.on("request", lambda r: _note(opened, r.url, address))
        page.goto(address, wait_until="load")
        return opened

    yield open_file
    for context in contexts:
        context.close()


def _note(opened: OpenPage, url: str, address: str) -> None:
    if url.split("#")[0] != address and not url.startswith(("data:", "blob:")):
        opened.requests.append(url)
