"""A real browser for the page's tests: Chromium by Playwright, in a profile of its own, that reaches this machine alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: Playwright drives other Firefoxes than its own build no more, and that comes from no package registry.
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOUND = next((found for name in _NAMES if (found := shutil.which(name))), None)
HOW_TO_GET_ONE = "no browser is here: apt-get install chromium, or `scripts/test --browser` as root"
needs_browser = pytest.mark.skipif(FOUND is None, reason=HOW_TO_GET_ONE)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
#: A busy machine takes its time; a hang shows as an error all the same.
WAIT_MS = 900_000


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser while the block runs."""
    from playwright.sync_api import sync_playwright

    assert FOUND is not None, HOW_TO_GET_ONE
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=FOUND, args=list(FLAGS), timeout=WAIT_MS)
        try:
            yield made
        finally:
            made.close()


class Seen:
    """What a tab complained of and asked for."""

    def __init__(self, page: Page, address: str) -> None:
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None,
        )
        page.on(
            "request",
            lambda asked: (
                None if asked.url.startswith((address, "blob:")) else self.elsewhere.append(asked.url)
            ),
        )


@contextmanager
def tab(
    of: Browser, address: str, *, dark: bool = False, width: int = 1100, height: int = 900
) -> Iterator[tuple[Page, Seen]]:
    """A tab in a context of its own, that must complain of nothing and ask nobody else."""
    context = of.new_context(
        color_scheme="dark" if dark else "light", viewport={"width": width, "height": height}
    )
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    seen = Seen(page, address)
    try:
        yield page, seen
        assert (seen.complaints, seen.elsewhere) == ([], []), seen.complaints + seen.elsewhere
    finally:
        context.close()


def violations(page: Page) -> list[str]:
    """What axe finds against WCAG 2 A and AA and its own good practice, a line each."""
    from axe_playwright_python.base import AXE_SCRIPT

    page.evaluate(AXE_SCRIPT)
    found: dict[str, Any] = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {one['help']}: {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def sideways(page: Page) -> list[str]:
    """What is wider than the window."""
    found: list[str] = page.evaluate(
        """() => { const root = document.documentElement;
        return root.scrollWidth <= root.clientWidth ? [] : [...document.querySelectorAll('body *')]
          .filter(one => one.getBoundingClientRect().right > root.clientWidth + 1).map(one => one.outerHTML.slice(0, 160)); }"""
    )
    return found


def shifts(page: Page) -> float:
    """How much was moved since the page was loaded without anybody doing something (web.dev/cls)."""
    moved: float = page.evaluate(
        """() => new Promise(done => { let sum = 0;
        new PerformanceObserver(list => { for (const one of list.getEntries()) if (!one.hadRecentInput) sum += one.value; })
          .observe({type: 'layout-shift', buffered: true}); setTimeout(() => done(sum), 50); })"""
    )
    return moved
