"""Pictures of the docs: each is shown by a page, and each that a page shows is there."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tests.docs.commands import PAGES, ROOT


def test_every_picture_is_shown_and_every_shown_one_is_there() -> None:
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+\.svg)\)", page.read_text())
    }
    assert all(picture.is_file() for picture in shown)
    assert set((ROOT / "docs" / "pictures").glob("*.svg")) <= shown


def test_every_picture_of_the_page_is_shown_in_light_and_dark_and_every_shown_one_is_there() -> None:
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r'(?:src|srcset)="([^"]+\.png)"', page.read_text())
    }
    assert shown == set((ROOT / "docs" / "pictures").glob("*.png")) and len(shown) >= 2
    assert {one.name for one in shown if "-dark" not in one.name} == {
        one.name.replace("-dark", "") for one in shown if "-dark" in one.name
    }


def test_every_picture_follows_light_and_dark() -> None:
    for picture in (ROOT / "docs" / "pictures").glob("*.svg"):
        style = ElementTree.parse(picture).getroot().find("{http://www.w3.org/2000/svg}style")
        assert style is not None and "prefers-color-scheme:dark" in (style.text or ""), picture.name
