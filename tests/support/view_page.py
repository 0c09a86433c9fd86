"""A real Chromium on a real ``rondo view``: what it loads, what it says on its console, and pictures of it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: 'apt-get install chromium' brings one")
PICTURES = Path(os.environ.get("RONDO_PICTURES", "build/pictures"))
"""Where the pictures of the pages are kept, for people to look at."""
_ALL_IMAGES = """async () => {
  const images = [...document.images];
  images.forEach((image) => { image.loading = "eager"; });
  await Promise.all(images.map((image) => image.decode()));
}"""
_PATIENCE = 90_000
"""Milliseconds: a page is loaded when its charts are drawn, and a busy machine takes its time for that."""


@contextmanager
def served(root: Path, *arguments: str) -> Iterator[str]:
    """Runs ``rondo view`` on any free port; gives its address, without the path."""
    command = [sys.executable, "-m", "flows.cli.main", "view", *arguments, "--root", str(root), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("rondo view: http://"), line
            yield line.split()[2].rstrip("/")
        finally:
            process.terminate()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Starts the browser; as root it has no sandbox."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """A tab, with what went wrong in it: words on its console, requests that failed, and requests to other machines.

    Attributes:
        page: Playwright's page.
        complaints: what should not be.
    """

    def __init__(self, browser: Browser, address: str, **context: Any) -> None:
        self.page: Page = browser.new_context(**context).new_page()
        self.page.set_default_timeout(_PATIENCE)
        self.address, self.complaints = address, list[str]()
        self.page.on("console", lambda message: self.complaints.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("request", lambda request: self._check(request.url))
        self.page.on("response", lambda got: got.status < 500 or self.complaints.append(f"{got.status} {got.url}"))

    def open(self, path: str) -> Page:
        """Opens a page, and waits until its script has run."""
        self.page.goto(self.address + path)
        self.wait_for_keys()
        return self.page

    def wait_for_keys(self) -> None:
        """Waits until the page's script has run: a key that comes before is for nothing."""
        self.page.wait_for_selector("html[data-ready]")

    def picture(self, name: str) -> None:
        """Keeps a picture of the whole page, with the curves that are else drawn when somebody scrolls to them."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.evaluate(_ALL_IMAGES)
        self.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)

    def scrolls_sideways(self) -> bool:
        """Says whether the page is wider than its window."""
        wide: bool = self.page.evaluate("document.scrollingElement.scrollWidth > innerWidth")
        return wide

    def _check(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:")):
            self.complaints.append(f"left the machine: {url}")
