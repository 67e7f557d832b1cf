"""Pictures of the docs: each is shown by a page, and each that a page shows is there."""

from __future__ import annotations

import re

from tests.docs.commands import PAGES, ROOT


def test_every_picture_is_shown_and_every_shown_one_is_there() -> None:
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+\.svg)\)", page.read_text())
    }
    assert all(picture.is_file() for picture in shown)
    assert set((ROOT / "docs" / "pictures").glob("*.svg")) <= shown
