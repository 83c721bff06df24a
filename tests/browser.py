"""A real browser for the tests of reports: pages are opened from disk, without a network."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")

PATIENCE_MS = 300_000.0
"""Software rendering on a machine that runs other tests at the same time is slow."""
FLAGS = [
    "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
    "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip


def chromium() -> str:
    """Path of the browser; tests are skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("CRYSTALVAE_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no browser: install chromium (Debian: apt-get install chromium), or set CRYSTALVAE_CHROMIUM")
    return found


@pytest.fixture(scope="module")
def driver() -> Iterator:
    chromium()
    with playwright.sync_playwright() as started:
        yield started


def launch(driver, flags: list[str]):
    return driver.chromium.launch(executable_path=chromium(), args=flags, timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser(driver) -> Iterator:
    started = launch(driver, FLAGS)
    yield started
    started.close()


def wait_until(page, expression: str) -> None:
    """Wait until an expression is true on a page, or in a frame, whose policy may forbid `eval`."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never came true: {expression}"
        page.wait_for_timeout(50)


class Visit:
    """A page opened from disk without a network, with everything it said and asked for."""

    def __init__(self, browser, path: Path):
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
        self.context.set_offline(True)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"uncaught: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("document.documentElement.dataset.ready === 'true'")

    def colours(self, selector: str) -> set[tuple[int, int, int]]:
        """Colours on the screen, the browser's own picture of an element."""
        picture = self.page.locator(selector).first.screenshot()
        with Image.open(io.BytesIO(picture)) as image:
            return {colour for _, colour in image.convert("RGB").getcolors(maxcolors=10**7)}

    def atoms(self, viewer: int) -> int:
        """How many atoms the viewer itself says it holds."""
        return self.page.evaluate(f"window.crystalViewers[{viewer}].selectedAtoms({{}}).length")
