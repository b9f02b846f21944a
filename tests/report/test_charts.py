"""Charts are well-formed SVG whose shapes stand where the numbers say, whatever the numbers are."""

import math
import re
from xml.etree import ElementTree

import pytest

from looptool_jax.report.charts import (
    WIDTH,
    Dots,
    Line,
    Segment,
    bar_chart,
    interval_chart,
    line_chart,
    plain,
    stacked_bars,
)

ATTACK = "<script>&\"'\u202e"


def parsed(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(figure)


def numbers(figure: str) -> list[float]:
    """Every number that places something (but those of paths, most of which are relative)."""
    placed = re.findall(r'(?:points|x|y|cx|cy|width|height)="([^"]*)"', figure)
    return [float(number) for text in placed for number in re.findall(r"-?\d+\.?\d*", text)]


def test_points_stand_in_proportion():
    figure = parsed(line_chart("t", [Line("a", [0, 1, 4], [0.0, 0.5, 1.0])], y_range=(0, 1)))
    (line,) = figure.iter("polyline")
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in line.get("points").split())
    assert (x1 - x0) / (x2 - x0) == pytest.approx(1 / 4, abs=0.01)
    assert (y0 - y1) / (y0 - y2) == pytest.approx(1 / 2, abs=0.01) and y2 < y0, "up is more"
    assert figure.find("svg").get("role") == "img" and figure.find("svg/title").text == "t"
    assert figure.find("svg/desc").text == "a: 0 0, 1 0.5, 4 1"


def test_a_band_encloses_its_line_and_a_gap_breaks_it():
    band = [(0.1, 0.3), (0.4, 0.6), (0.7, 0.9), (0.2, 0.4)]
    figure = parsed(line_chart("t", [Line("a", range(4), [0.2, 0.5, 0.8, 0.3], band)]))
    (shape,) = figure.iter("polygon")
    assert len(shape.get("points").split()) == 8
    broken = parsed(line_chart("t", [Line("a", range(5), [1.0, 2.0, None, math.nan, 3.0])]))
    assert len(list(broken.iter("polyline"))) == 1 and len(list(broken.iter("circle"))) == 3


@pytest.mark.parametrize(
    "lines",
    [
        [], [Line("a", [], [])], [Line("a", [1], [5.0])], [Line("a", [1, 2], [0.0, 0.0])],
        [Line("a", [1, 2], [None, None])], [Line("a", [1, 2], [-1e9, 1e9]), Line("b", [1, 2], [1e-9, 2e-9])],
        [Line("a", range(5000), [float(i % 7) for i in range(5000)])], [Line("a", [1, 2], [math.inf, 1.0])],
    ],
)  # fmt: skip
def test_odd_series_stay_inside(lines):
    figure = line_chart("t", lines, marks=[(1, "round 1")] if lines and lines[0].x else ())
    parsed(figure)
    assert all(-1 <= value <= WIDTH + 1 for value in numbers(figure)) and "nan" not in figure and "inf" not in figure


def test_series_differ_without_colour():
    lines = [Line(str(i), [0, 1], [i, i + 1]) for i in range(8)]
    figure = line_chart("t", lines)
    dashes = re.findall(r'<polyline class="line" stroke-dasharray="([^"]*)"', figure)
    assert len(set(dashes)) == 8
    assert len(list(parsed(figure).iter("li"))) == 8


def test_intervals_bars_and_stacks_say_their_numbers():
    dots = [Dots("before", [0.5, None], [(0.4, 0.6), None]), Dots("after", [0.7, 1.0])]
    figure = parsed(interval_chart("t", ["one", "two"], dots, x_range=(0, 1)))
    titles = [title.text for title in figure.iter("title")]
    assert "one, before: 50.0 % (40.0 % to 60.0 %)" in titles and "two, after: 100.0 %" in titles
    assert len(titles) == 1 + 3
    stack = parsed(stacked_bars("t", ["D1", "D2"], [Segment("a", [3, 0]), Segment("b", [1, 4])]))
    widths = [float(bar.get("width")) + 1.5 for bar in stack.iter("rect") if "bar" in bar.get("class") and bar.get("y")]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.02) and widths[2] == pytest.approx(4 * widths[1], rel=0.02)
    assert stack.find("svg/desc").text == "D1: a 3, b 1; D2: a 0, b 4"
    bars = parsed(bar_chart("t", [("x", 4.0), ("y", 0.0)]))
    assert bars.find("svg/desc").text == "x 4; y 0"
    parsed(bar_chart("t", [])), parsed(stacked_bars("t", [], [])), parsed(interval_chart("t", [], []))


def test_names_are_text():
    charts = [
        line_chart(ATTACK, [Line(ATTACK, [0, 1], [0, 1])] * 2, x_label=ATTACK, note=ATTACK, marks=[(0, ATTACK)]),
        interval_chart(ATTACK, [ATTACK], [Dots(ATTACK, [1.0])] * 2, note=ATTACK),
        bar_chart(ATTACK, [(ATTACK, 1)], note=ATTACK),
        stacked_bars(ATTACK, [ATTACK], [Segment(ATTACK, [1])], note=ATTACK),
    ]
    for chart in charts:
        parsed(chart)
        assert "<script" not in chart and "\u202e" not in chart and "&lt;script&gt;" in chart


NUMBERS = [(0.0, "0"), (1234567.8, "1,234,568"), (0.012345, "0.0123"), (-2.5, "-2.5")]


@pytest.mark.parametrize(("value", "shown"), NUMBERS)
def test_plain_numbers(value, shown):
    assert plain(value) == shown
