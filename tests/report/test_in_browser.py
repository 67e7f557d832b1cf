"""The report in a real headless browser: nothing scrolls sideways, nothing is fetched, nothing complains.

Runs where Chromium is installed; else it is skipped and says so. A page of the same widths holds the report in frames
and writes down what it measures, and what the report asked for; no host is ever resolved.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mlx_gardener.report.html import render_report_html
from tests.report.facts import full_events, full_facts

WIDTHS = (360, 400, 768, 1280)
PHONE = 400  # up to this width nothing may need a scroll of its own
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars",
    "--disable-features=NetworkTimeServiceQuerying", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"
)


def browse(page: Path, directory: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open ``page`` in a fresh profile."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={directory / 'profile'}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def frames(directory: Path, page: str) -> Path:
    """A page with the report in a frame of each width, that writes each frame's widths and scripts into its body."""
    shown = "".join(
        f'<iframe width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>' for width in WIDTHS
    )
    script = """
    addEventListener('load', () => {
      const seen = [...document.querySelectorAll('iframe')].map(frame => {
        const inside = frame.contentDocument, root = inside.documentElement;
        const small = [...inside.querySelectorAll('p, td, th, pre, li, h2, figcaption, summary')]
          .filter(one => parseFloat(frame.contentWindow.getComputedStyle(one).fontSize) < 12).length;
        const hidden = [...inside.querySelectorAll('tbody td, tbody th, pre, p, li, dd, figure, .scroll, .command, .stacks svg')]
          .filter(one => one.getBoundingClientRect().right > root.clientWidth + 1 || one.scrollWidth > one.clientWidth + 1
            || (one.matches('.stacks *') && !one.closest('svg *') && one.getBoundingClientRect().width === 0))
          .map(one => one.outerHTML.slice(0, 200));
        return {hidden, width: root.clientWidth, needs: root.scrollWidth, paper: frame.contentWindow.getComputedStyle(inside.body)
          .backgroundColor, small, mode: inside.compatMode,
          asked: frame.contentWindow.performance.getEntriesByType('resource').map(one => one.name)};
      });
      document.body.innerHTML = '<pre id=seen></pre>';
      document.getElementById('seen').textContent = JSON.stringify(seen);
    });"""
    file = directory / "frames.html"
    file.write_text(f"<!doctype html><body>{shown}<script>{script}</script></body>", encoding="utf-8")
    return file


@pytest.mark.parametrize(("scheme", "paper"), [(0, "rgb(13, 17, 23)"), (1, "rgb(255, 255, 255)")])
def test_the_page_fits_every_width_and_asks_for_nothing(tmp_path: Path, scheme: int, paper: str) -> None:
    page = render_report_html(full_facts(), events=full_events())
    done = browse(
        frames(tmp_path, page),
        tmp_path,
        "--dump-dom",
        "--window-size=2600,1000",
        "--enable-logging=stderr",
        f"--blink-settings=preferredColorScheme={scheme}",
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert [one["width"] for one in seen] == list(WIDTHS)
    for one in seen:
        assert one["needs"] <= one["width"], f"scrolls sideways at {one['width']}"
        assert one["asked"] == [], "the page fetches nothing"
        assert one["width"] > PHONE or one["hidden"] == [], "all columns, bars and lines are seen"
        assert one["paper"] == paper and one["mode"] == "CSS1Compat" and one["small"] == 0, one
    # The browser's own pages complain too, on a slow machine.
    console = [
        line for line in done.stderr.splitlines() if "CONSOLE" in line and "source: chrome://" not in line
    ]
    assert not console
