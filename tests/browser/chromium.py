"""A browser to look at pages with: Debian's Chromium, driven by Playwright, that sees every request and complaint."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

DESKTOP, PHONE = (1280, 900), (390, 844)
"""Sizes of a window, in CSS pixels."""

SETTLING = 100
"""Tenths of a second in which a page may still change on a busy machine."""


@cache
def chromium() -> str | None:
    """Where the browser is: what CHROMIUM names, or one on PATH; none is ever downloaded."""
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome", "/usr/bin/chromium"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def why_not() -> str:
    """Why pages cannot be looked at here; empty where they can."""
    if find_spec("playwright") is None:
        return "no Playwright: pip install 'onnxq[browser]'"
    if chromium() is None:
        return "no Chromium on PATH and none named by CHROMIUM: apt-get install chromium"
    return ""


@dataclass
class Window:
    """A page that is open.

    Attributes:
        page: to be clicked and asked.
        complaints: what the console said, and errors that nobody caught.
        requests: every address that was asked for, but for the page itself.
        seconds: how long it took to open.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __call__(self, script: str, value: object = None) -> Any:
        """What a script says in the page."""
        return self.page.evaluate(script, value)

    @property
    def overflows(self) -> bool:
        """Whether the page as a whole scrolls sideways, also after its charts have had the time to find their size."""
        for _ in range(SETTLING):
            if not self("document.documentElement.scrollWidth > window.innerWidth"):
                return False
            time.sleep(0.1)
        return True


@contextmanager
def opened(
    browser: Browser,
    file: Path,
    size: tuple[int, int] = DESKTOP,
    scheme: Literal["light", "dark"] = "light",
) -> Iterator[Window]:
    """A file in a fresh window; nothing but the file itself is let through."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, has_touch=size == PHONE
    )
    window = Window(context.new_page())
    address = file.resolve().as_uri()
    window.page.on("console", lambda message: window.complaints.append(f"{message.type}: {message.text}"))
    window.page.on("pageerror", lambda error: window.complaints.append(str(error)))

    def dismiss(dialog: Dialog) -> None:
        window.complaints.append(dialog.message)
        dialog.dismiss()

    def intercept(route: Any) -> None:
        if route.request.url.partition("#")[0] == address:
            route.continue_()
        else:
            window.requests.append(route.request.url)
            route.abort()

    window.page.on("dialog", dismiss)
    window.page.route("**/*", intercept)
    start = time.perf_counter()
    window.page.goto(address, wait_until="load")
    window.seconds = time.perf_counter() - start
    try:
        yield window
    finally:
        context.close()
