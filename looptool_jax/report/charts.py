"""Charts as inline SVG: small pure functions from numbers to markup.

Colours come from the page's style, so a chart is right in light, in dark and on paper. Series differ in dash and marker
too. Every chart has a title and a description in words; each point tells its value where a pointer rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from looptool_jax.report.page import text
from looptool_jax.report.tables import percent

WIDTH, LEFT, RIGHT, TOP = 480, 62, 26, 18
SERIES = 8  # that have a look of their own
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 4", "1 4", "10 2 2 2 2 2")
_WORDS = 12  # points up to which a description names every one

Form = Callable[[float], str]
Interval = tuple[float, float]
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Line:
    """A series: `y` over `x`, None where there is no value; `band`: an interval (low, high) at every point."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    band: Sequence[Interval] = ()


@dataclass(frozen=True)
class Dots:
    """A series of an interval chart: a value in every row (None: none), with an interval where one is known."""

    name: str
    values: Sequence[float | None]
    intervals: Sequence[Interval | None] = ()


@dataclass(frozen=True)
class Segment:
    """A part of stacked bars: how much of it is in every bar."""

    name: str
    values: Sequence[float]


def plain(value: float) -> str:
    """A number with no more digits than one reads."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str = "",
    x_ticks: Sequence[tuple[float, str]] = (),
    y_range: Interval | None = None,
    marks: Sequence[tuple[float, str]] = (),
    form: Form = plain,
    note: str = "",
) -> str:
    """Lines over a common x axis, their intervals as bands. marks: vertical lines with a word at their top.

    x_ticks: where the axis is labelled, and how; else at round numbers. y_range: of the axis; else as the values ask.
    """
    height, bottom = 240, 46
    xs = [x for line in lines for x in line.x]
    ys = _finite(y for line in lines for y in [*line.y, *(end for ends in line.band for end in ends)])
    if not xs or not ys:
        return _figure(title, [], "", "no values", note, height)
    x_low, x_high = min(xs), max(xs)
    ticks = _ticks(*(y_range or (min(ys), max(ys))))
    y_low, y_high = y_range or (ticks[0], ticks[-1])

    def x(value: float) -> float:
        share = (value - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return LEFT + 10 + share * (WIDTH - LEFT - RIGHT - 20)

    def y(value: float) -> float:
        return TOP + (1 - (value - y_low) / (y_high - y_low)) * (height - bottom - TOP)

    parts = [_grid_line(LEFT, y(tick), WIDTH - RIGHT, y(tick)) for tick in ticks]
    parts += [_label(LEFT - 6, y(tick) + 4, _short(form(tick)), "end") for tick in ticks]
    named = list(x_ticks) or [(tick, plain(tick)) for tick in _ticks(x_low, x_high) if x_low <= tick <= x_high]
    parts += [_label(x(at), height - bottom + 18, name, "middle") for at, name in named]
    for at, name in marks:
        parts.append(f'<path class="mark" d="M{x(at):.1f} {TOP}V{height - bottom}"/>')
        parts.append(_label(x(at), TOP - 5, name, "start"))
    if x_label:
        parts.append(_label((LEFT + WIDTH - RIGHT) / 2, height - 8, x_label, "middle"))
    for number, line in enumerate(lines):
        parts.append(_series_group(number, _band(line, x, y) + _polyline(number, line, x, y, form)))
    legend = [(line.name, _swatch_line(number)) for number, line in enumerate(lines)] if len(lines) > 1 else []
    described = "; ".join(_line_words(line, dict(x_ticks), form) for line in lines)
    return _figure(title, legend, "".join(parts), described, note, height)


def interval_chart(
    title: str,
    rows: Sequence[str],
    series: Sequence[Dots],
    *,
    x_range: Interval | None = None,
    zero: bool = False,
    form: Form = percent,
    note: str = "",
) -> str:
    """A row for each name; in it a dot for each series, its interval as a line through it. zero: is on the axis."""
    step, left = 13, 166
    block = step * len(series) + 12
    height = TOP + block * len(rows) + 26
    ends = _finite(v for one in series for v in [*one.values, *(end for ends in one.intervals if ends for end in ends)])
    ends += [0.0] if zero else []
    ticks = _ticks(*(x_range or (min(ends, default=0.0), max(ends, default=1.0))))
    low, high = x_range or (ticks[0], ticks[-1])

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - RIGHT)

    parts = [_grid_line(x(tick), TOP, x(tick), height - 24) for tick in ticks]
    parts += [_label(x(tick), height - 8, _short(form(tick)), "middle") for tick in ticks]
    for index, name in enumerate(rows):
        top = TOP + index * block
        parts.append(_label(left - 10, top + block / 2 + 4, name, "end", longest=24))
        if index:
            parts.append(_grid_line(0, top, WIDTH - RIGHT, top))
        for number, one in enumerate(series):
            value = one.values[index]
            if value is None or not _known(value):
                continue
            ends_here = one.intervals[index] if one.intervals else None
            y = top + 12 + number * step
            span = f'<path class="whisker" d="M{x(ends_here[0]):.1f} {y}H{x(ends_here[1]):.1f}"/>' if ends_here else ""
            words = f"{name}, {one.name}: {form(value)}{_interval_words(ends_here, form)}"
            parts.append(_series_group(number, span + _marker(number, x(value), y, words)))
    legend = [(one.name, _swatch_dot(number)) for number, one in enumerate(series)] if len(series) > 1 else []
    described = "; ".join(
        f"{one.name}: "
        + ", ".join(f"{row} {form(v)}" for row, v in zip(rows, one.values, strict=True) if v is not None)
        for one in series
    )
    return _figure(title, legend, "".join(parts), described, note, height)


def bar_chart(title: str, bars: Sequence[tuple[str, float]], *, form: Form = plain, note: str = "") -> str:
    """A horizontal bar for each name, its value behind it."""
    step, left, room = 26, 166, 84
    height = TOP + step * len(bars) + 6
    most = max((value for _, value in bars), default=0) or 1
    parts = []
    for index, (name, value) in enumerate(bars):
        y = TOP + index * step
        width = max(0.0, value / most * (WIDTH - left - room))
        parts.append(_label(left - 10, y + 14, name, "end", longest=24))
        parts.append(f'<rect class="bar" x="{left}" y="{y}" width="{width:.1f}" height="{step - 8}" rx="2"/>')
        parts.append(_label(left + width + 6, y + 14, form(value), "start"))
    described = "; ".join(f"{name} {form(value)}" for name, value in bars)
    return _figure(title, [], _series_group(0, "".join(parts)), described, note, height)


def stacked_bars(
    title: str, bars: Sequence[str], segments: Sequence[Segment], *, form: Form = plain, note: str = ""
) -> str:
    """A horizontal bar for each name, cut into its segments in the order of the legend, each with its number."""
    step, left = 34, 70
    height = TOP + step * len(bars) + 4
    totals = [sum(part.values[index] for part in segments) for index in range(len(bars))]
    scale = (WIDTH - left - RIGHT - 46) / (max(totals, default=0) or 1)
    parts = []
    for index, name in enumerate(bars):
        y, at = TOP + index * step, float(left)
        parts.append(_label(left - 10, y + 18, name, "end"))
        for number, part in enumerate(segments):
            width = part.values[index] * scale
            if not width:
                continue
            words = f"{name}, {part.name}: {form(part.values[index])}"
            drawn = max(1.0, width - 1.5)
            shape = (
                f'<rect class="bar" x="{at:.1f}" y="{y}" width="{drawn:.1f}" height="{step - 8}" rx="2">'
                f"<title>{text(words)}</title></rect>"
            )
            inside = form(part.values[index])
            if width > 11 * len(inside):
                shape += (
                    f'<text class="on" x="{at + width / 2:.1f}" y="{y + 18}" text-anchor="middle">{text(inside)}</text>'
                )
            parts.append(_series_group(number, shape))
            at += width
        parts.append(_label(at + 5, y + 18, form(totals[index]), "start"))
    legend = [(part.name, _swatch_area(number)) for number, part in enumerate(segments)]
    described = "; ".join(
        f"{name}: " + ", ".join(f"{part.name} {form(part.values[index])}" for part in segments)
        for index, name in enumerate(bars)
    )
    return _figure(title, legend, "".join(parts), described, note, height)


# --- pieces -----------------------------------------------------------------------------------------------------------


def _figure(
    title: str, legend: Sequence[tuple[str, str]], shapes: str, described: str, note: str, height: float
) -> str:
    items = "".join(f"<li>{swatch}{text(name)}</li>" for name, swatch in legend)
    keys = f'<ul class="legend">{items}</ul>' if items else ""
    note_html = f'<p class="note">{text(note)}</p>' if note else ""
    return (
        f'<figure class="chart"><figcaption>{text(title)}</figcaption>{keys}'
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img"><title>{text(title)}</title><desc>{text(described)}</desc>'
        f"{shapes}</svg>{note_html}</figure>"
    )


def _series_group(number: int, shapes: str) -> str:
    return f'<g class="s{number % SERIES}">{shapes}</g>'


def _polyline(number: int, line: Line, x: Scale, y: Scale, form: Form) -> str:
    """The line through its known values, broken where one is missing; a marker at each point of a short one."""
    pieces: list[list[str]] = [[]]
    for at, value in zip(line.x, line.y, strict=True):
        if value is None or not _known(value):
            pieces.append([])
        else:
            pieces[-1].append(f"{x(at):.1f},{y(value):.1f}")
    drawn = "".join(
        f'<polyline class="line" stroke-dasharray="{_DASHES[number % SERIES]}" points="{" ".join(piece)}"/>'
        for piece in pieces
        if len(piece) > 1
    )
    if len(line.x) > 2 * _WORDS:
        return drawn
    for index, (at, value) in enumerate(zip(line.x, line.y, strict=True)):
        if value is not None and _known(value):
            ends = line.band[index] if line.band else None
            drawn += _marker(number, x(at), y(value), f"{line.name}: {form(value)}{_interval_words(ends, form)}")
    return drawn


def _band(line: Line, x: Scale, y: Scale) -> str:
    if len(line.band) < 2:
        return ""
    there = [f"{x(at):.1f},{y(high):.1f}" for at, (_, high) in zip(line.x, line.band, strict=True)]
    back = [f"{x(at):.1f},{y(low):.1f}" for at, (low, _) in zip(line.x, line.band, strict=True)]
    return f'<polygon class="band" points="{" ".join(there + back[::-1])}"/>'


def _marker(number: int, x: float, y: float, words: str = "") -> str:
    """A shape of its own for each series: disc, square, diamond, triangles, cross, ring."""
    r = 4.2
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"',
        f'<path d="M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z"',
        f'<path d="M{x:.1f} {y - r - 1:.1f}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z"',
        f'<path d="M{x:.1f} {y - r:.1f}l{r} {2 * r}h{-2 * r}z"',
        f'<path d="M{x:.1f} {y + r:.1f}l{r} {-2 * r}h{-2 * r}z"',
        f'<path d="M{x - r:.1f} {y - 1.5:.1f}h{2 * r}v3h{-2 * r}z"',
        f'<path d="M{x - 1.5:.1f} {y - r:.1f}h3v{2 * r}h-3z"',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"',
    )
    inside = f"<title>{text(words)}</title>" if words else ""
    return f'{shapes[number % SERIES]} class="dot">{inside}</{shapes[number % SERIES][1:].split()[0]}>'


def _swatch(number: int, shapes: str) -> str:
    return f'<svg class="swatch s{number % SERIES}" viewBox="0 0 28 12" aria-hidden="true">{shapes}</svg>'


def _swatch_line(number: int) -> str:
    dash = _DASHES[number % SERIES]
    return _swatch(number, f'<path class="line" stroke-dasharray="{dash}" d="M0 6H28"/>{_marker(number, 14, 6)}')


def _swatch_dot(number: int) -> str:
    return _swatch(number, f'<path class="whisker" d="M2 6H26"/>{_marker(number, 14, 6)}')


def _swatch_area(number: int) -> str:
    return _swatch(number, '<rect class="bar" x="8" width="12" height="12" rx="2"/>')


def _label(x: float, y: float, words: str, anchor: str, longest: int = 60) -> str:
    shown = words if len(words) <= longest else f"{words[: longest - 1]}…"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text(shown)}</text>'


def _grid_line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="grid" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that enclose the range, about so many."""
    if high <= low:
        low, high = (low - 0.5, high + 0.5) if low else (0.0, 1.0)
    rough = (high - low) / (about - 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(size * unit for size in (1, 2, 2.5, 5, 10) if size * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _short(label: str) -> str:
    return label.replace(".0 %", " %")


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _interval_words(ends: Interval | None, form: Form) -> str:
    return f" ({form(ends[0])} to {form(ends[1])})" if ends else ""


def _line_words(line: Line, names: dict[float, str], form: Form) -> str:
    """A short line point by point, a long one by its ends and extremes."""
    known = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None and _known(y)]
    if not known:
        return f"{line.name}: no values"
    if len(known) <= _WORDS:
        return f"{line.name}: " + ", ".join(f"{names.get(x, plain(x))} {form(y)}" for x, y in known)
    values = [y for _, y in known]
    return (
        f"{line.name}: {len(values)} points, first {form(values[0])}, last {form(values[-1])}, "
        f"lowest {form(min(values))}, highest {form(max(values))}"
    )
