"""Pictures without a library: charts, their axes and bars, and colours that can be read."""

from __future__ import annotations

import re

import pytest

from mlx_gardener.report.html import render_report_html
from mlx_gardener.report.svg import COLOURS, labelled, line_chart, loss_chart, ticks
from tests.report.facts import full_facts


def contrast(one: str, other: str) -> float:
    """Of two colours, by WCAG 2.2 (relative luminance)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_colour_of_text_has_enough_contrast() -> None:
    for fallback, light, dark in COLOURS.values():
        assert min(contrast(light, "#ffffff"), contrast(light, "#f6f8fa")) >= 4.5, light
        assert min(contrast(dark, "#0d1117"), contrast(dark, "#161b22")) >= 4.5, dark
        assert min(contrast(fallback, "#ffffff"), contrast(fallback, "#111111")) >= 3.0, "lines, not text"
    assert contrast("#57606a", "#f6f8fa") >= 4.5 and contrast("#9198a1", "#161b22") >= 4.5


def test_ticks_are_round_and_few() -> None:
    assert ticks(0, 4.2) == [0, 1, 2, 3, 4] and ticks(1.0, 1.0) == [1.0] and ticks(0, float("nan")) == [0]
    for low, high in ((0, 1e-9), (-3.3, 1234.5), (7.77, 7.78)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 5 and all(low - 1e-9 <= at <= high + 1e-9 for at in found)


def test_a_chart_without_points_is_empty() -> None:
    assert line_chart([("a", "red", [])], title="", x_label="x", y_label="y") == ""


def test_noisy_updates_stand_behind_their_mean() -> None:
    def chart(losses: list[float]) -> str:
        return loss_chart(
            {"train_losses": losses, "validation": [{"step": 0, "loss": 3.0}, {"step": 9, "loss": 2.0}]}
        )

    few, many = chart([3.0, 2.0, 2.5]), chart([3.0, 1.0] * 20)
    assert few.count("<polyline") == 2 and ">training<" in few
    assert many.count("<polyline") == 3 and ">each update<" in many and ">mean of 4<" in many
    means = re.findall(r'points="([^"]+)"', many)[1].split()
    assert len({point.split(",")[1] for point in means}) == 1, "the mean of 3 and 1 is 2 wherever it stands"


def test_the_numbers_of_an_axis_differ() -> None:
    for low, high in ((1.23401, 1.23409), (12_340.0, 12_345.0), (0.0, 1e-6), (-0.2, 0.3), (1e6, 1e6 + 3)):
        labels = [label for _, label in labelled(ticks(low, high))]
        assert len(set(labels)) == len(labels) > 1, labels
    assert [label for _, label in labelled([-0.1, 0.0, 0.1], times=100, sign="+")] == ["-10", "0", "+10"]


def test_a_bar_is_as_long_as_its_change() -> None:
    def lengths(*adapters: float) -> list[float]:
        facts = full_facts()
        facts["evidence"]["files"] = [
            {"path": f"d{at}/x.py", "language": "python", "bytes": 10, "base_bits_per_byte": 1.0, "adapter_bits_per_byte": bits}
            for at, bits in enumerate(adapters)
        ]  # fmt: skip
        page = render_report_html(facts, events=[])
        by_directory = page[page.index("By directory") :]
        return [float(found) for found in re.findall(r'y="2" width="([\d.]+)" height="8"', by_directory)]

    assert lengths(0.999, 0.999) == [0.5, 0.5], (
        "a tenth of a per cent is a hundredth of the ten that fill a side"
    )
    small, large = lengths(0.98, 0.82)
    assert large == pytest.approx(9 * small, abs=0.5)
