"""Debian's Chromium, driven by Playwright: who is signed in there, and what the pages must never do."""

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from http_support import PASSWORD
from numpy.typing import NDArray
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

_FLAGS = ("--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
# Generous: a machine that is busy with other tests is no reason to fail.
expect.set_options(timeout=60_000)


def _chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        if os.environ.get("PARTNERS") == "0":
            pytest.skip("PARTNERS=0, and chromium is not here")
        pytest.fail("chromium is not here: tools/partners installs it")
    return found


class Visitor:
    """A person at a browser of their own; everything that the page did wrong is in `faults`."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.url = url
        self.context = browser.new_context(
            base_url=url, viewport={"width": 1280, "height": 760}, ignore_https_errors=True, **options
        )
        self.context.set_default_timeout(60_000)
        self.faults: list[str] = []
        self.hosts: set[str] = set()
        self.page: Page = self.context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error} {error.stack}"))
        self.context.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        # A violation of the policy is no error in the console alone: the event has what was refused.
        self.page.add_init_script(
            "document.addEventListener('securitypolicyviolation', e => "
            "console.error(`policy: ${e.violatedDirective} ${e.blockedURI} ${e.sourceFile}`))"
        )

    def _console(self, message: Any) -> None:
        # The browser itself notes every answer of 400 and more; those are the page's to explain, and it does.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.faults.append(f"{message.type}: {message.text}")

    def sign_in(self, user: str, password: str = PASSWORD) -> "Visitor":
        self.page.goto("/login")
        self.page.get_by_label("User").fill(user)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_role("navigation")).to_be_visible()
        return self

    def open(self, path: str) -> Page:
        self.page.goto(path)
        return self.page

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    @property
    def pane(self) -> Locator:
        return self.page.locator(".pane").first

    def pixels(self, pane: int = 0) -> NDArray[np.uint8]:
        """What is really drawn in a pane: (rows, columns, 4)."""
        # What was asked for before is drawn with the next frame of the screen.
        self.page.evaluate("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        width, height, data = self.page.evaluate(
            """(n) => {
                const canvas = document.querySelectorAll('.pane canvas')[n];
                const image = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
                let text = '';
                for (let i = 0; i < image.data.length; i += 32768)
                    text += String.fromCharCode(...image.data.subarray(i, i + 32768));
                return [image.width, image.height, btoa(text)];
            }""",
            pane,
        )
        return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)

    def close(self) -> None:
        self.context.close()


class Browsers:
    """One Chromium, and whoever sits at it."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._visitors: list[Visitor] = []

    def visitor(self, url: str, **options: Any) -> Visitor:
        visitor = Visitor(self._browser, url, **options)
        self._visitors.append(visitor)
        return visitor

    def leave(self) -> list[Visitor]:
        """Close every page; return them for a last look."""
        visitors, self._visitors = self._visitors, []
        for visitor in visitors:
            visitor.close()
        return visitors


@contextmanager
def browsers() -> Iterator[Browsers]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), chromium_sandbox=False, args=[*_FLAGS])
        try:
            yield Browsers(browser)
        finally:
            browser.close()


STATIC = Path(__file__).resolve().parents[2] / "components/radmesh/application_server/pages/static"
