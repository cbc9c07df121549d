"""What every page of ours is made of: the frame, tables, facts, chips, and line charts as inline SVG.

Builders take plain text and numbers, escape them, and return `Html`; a text that is `Html` already is left as it is. No
page needs a script to be read.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.documents.rendering import html_page

COLOURS = 8
"""Line colours in style.css, .c0 to .c7; each but two has a dash pattern of its own, so that colour is not all."""
ALONE = 4
"""Radius of the dot of a line that has one point."""
MAX_POINTS = 150
"""A line of more points is drawn as means, with a band from the lowest to the highest."""


class Html(str):
    """Text that is HTML already."""


def escape(text: object) -> Html:
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def join(parts: Iterable[str], between: str = "") -> Html:
    return Html(between.join(escape(part) for part in parts))


def page(title: str, *body: str, refresh_s: int = 0) -> str:
    """A whole page in the style of this folder.

    refresh_s: a browser loads it anew after so many seconds; 0, never.
    """
    frame = html_page(title, f"<main>{join(body)}</main>", style())
    return (
        frame.replace("<title>", f'<meta http-equiv="refresh" content="{refresh_s}">\n<title>', 1)
        if refresh_s
        else frame
    )


def style() -> str:
    """The CSS of all pages."""
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def element(tag: str, *content: str, style: str = "") -> Html:
    """<tag class="style">content</tag>"""
    attribute = f' class="{escape(style)}"' if style else ""
    return Html(f"<{tag}{attribute}>{join(content)}</{tag}>")


def section(name: str, title: str, *body: str) -> Html:
    """name: what a link to the section says after its `#`."""
    return Html(f'<section id="{escape(name)}"><h2>{escape(title)}</h2>{join(body)}</section>')


def note(text: str) -> Html:
    return element("p", text, style="note")


def details(summary: str, *body: str, opened: bool = False) -> Html:
    return Html(f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary>{join(body)}</details>")


def chip(name: str, value: float | None) -> Html:
    """A reward between 0 and 1 as a small label, tinted by its value; None, does not apply, is a dash."""
    style = "none" if value is None else "good" if value >= 0.9 else "fair" if value >= 0.5 else "poor"
    shown = Html("&ndash;") if value is None else f"{value:.2f}"
    return Html(f'<span class="chip {style}">{escape(name)} <b>{escape(shown)}</b></span>')


def table(
    header: Sequence[str | tuple[str, str]],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    words: int = 1,
    marked: int | None = None,
) -> Html:
    """The first cell of a row names it. On a phone every row becomes a card, so a table may be wide.

    header: names of columns, or (what it belongs to, name).
    words: how many columns hold words, aligned left; the rest hold numbers.
    marked: number of the row to bring out.
    """
    names = [(name,) if isinstance(name, str) else name for name in header]
    labels = [escape(" ".join(name)) for name in names]
    styles = [' class="words"' if column < words else "" for column in range(len(header))]
    head = "".join(
        f'<th scope="col"{style}>{join(element("small", part) for part in name[:-1])}{escape(name[-1])}</th>'
        for name, style in zip(names, styles, strict=True)
    )
    body = ""
    for place, (first, *rest) in enumerate(rows):
        cells = "".join(
            f'<td data-label="{label}"{style}><div>{escape(cell)}</div></td>'
            for cell, label, style in zip(rest, labels[1:], styles[1:], strict=True)
        )
        mark = ' class="marked"' if place == marked else ""
        body += f'<tr{mark}><th scope="row"{styles[0]}>{escape(first)}</th>{cells}</tr>'
    title = element("caption", caption) if caption else ""
    inner = f"{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return Html(f'<div class="scroll"><table class="stack">{inner}</table></div>')


def facts(values: Mapping[str, Any]) -> Html:
    """A list of names and values. A mapping among the values is folded away under its name."""
    flat = {k: v for k, v in values.items() if not isinstance(v, Mapping)}
    pairs = "".join(f"<dt>{escape(k)}</dt><dd>{escape(_value(v))}</dd>" for k, v in flat.items())
    nested = join(details(k, facts(v)) for k, v in values.items() if isinstance(v, Mapping) and v)
    return Html((f"<dl>{pairs}</dl>" if pairs else "") + nested)


def number(value: object) -> float | None:
    """A finite number as float; None for anything else, a missing figure or NaN among them."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def compact(value: float) -> str:
    """A number as short as it can be read: 1,200  0.712  3.1e-6"""
    if value and abs(value) < 0.01:
        return f"{value:.2g}".replace("e-0", "e-")
    if abs(value) < 1:
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: Sequence[tuple[float, float]]
    """(x, y) in the order of x."""
    band: Sequence[tuple[float, float, float]] = ()
    """(x, low, high): an interval, tinted behind the line."""
    colour: int = 0


def thinned(line: Line) -> Line:
    """The line itself, or if it has more than MAX_POINTS points their means, with the range as the band."""
    if len(line.points) <= MAX_POINTS:
        return line
    size = math.ceil(len(line.points) / MAX_POINTS)
    groups = [line.points[i : i + size] for i in range(0, len(line.points), size)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    band = [(x, min(y for _, y in g), max(y for _, y in g)) for (x, _), g in zip(means, groups, strict=True)]
    return Line(line.name, means, line.band or band, line.colour)


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    log_x: bool = False,
    log_y: bool = False,
    y_range: tuple[float, float] | None = None,
    rules: Sequence[float] = (),
    size: tuple[int, int] = (400, 230),
) -> Html:
    """rules: values of y, dashed across the chart. A logarithmic axis leaves out what is not above zero."""
    lines = [thinned(_drawable(line, log_x, log_y)) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        nothing = note("Nothing was recorded.")
        return Html(f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{nothing}</figure>')
    width, height = size
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for y in (*(y for _, y in line.points), *(y for _, *ends in line.band for y in ends))]
    low, high = y_range or _padded(min([*ys, *rules]), max([*ys, *rules]), log_y)
    y = _Axis(low, high, height - 34, 8, log_y)
    left = 10 + 7.4 * max(len(compact(tick)) for tick in y.ticks())
    x = _Axis(*_padded(min(xs), max(xs), log_x, 0), left, width - 16, log_x)
    marks = [_grid(x, y, x_label, width, height)]
    for value in rules:
        marks.append(f'<path class="rule" d="M{left:.1f} {y(value):.1f}H{width - 16}"/>')
    marks += [_marks(line, x, y) for line in lines]
    ends = (
        f"{line.name} from {compact(line.points[0][1])} to {compact(line.points[-1][1])}"
        if len(line.points) > 1
        else f"{line.name} at {compact(line.points[0][1])}"
        for line in lines
    )
    spoken = escape(f"{title}, by {x_label}: {'; '.join(ends)}")
    return Html(
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{spoken}">{"".join(marks)}</svg>'
        f"{_legend(lines)}</figure>"
    )


def key(line: Line, left: int, right: int, y: int) -> str:
    """What a line looks like, beside its name: a stroke, or where it has one point a dot."""
    style = f"c{line.colour % COLOURS}"
    if len(line.points) == 1:
        return f'<circle class="dot {style}" cx="{(left + right) / 2}" cy="{y}" r="{ALONE}"/>'
    return f'<path class="line {style}" d="M{left} {y}H{right}"/>'


def whisker(value: float, low: float, high: float, span: tuple[float, float], colour: int = 0) -> Html:
    """An estimate and its interval on a scale shared by the rows of a table, with a rule at zero."""
    x = _Axis(*_padded(min(span[0], 0.0), max(span[1], 0.0), False), 4, 172, False)
    return Html(
        f'<svg class="whisker c{colour % COLOURS}" viewBox="0 0 176 18" aria-hidden="true">'
        f'<path class="axis" d="M{x(0):.1f} 1V17"/><path stroke="var(--c)" stroke-width="1.6" d="M{x(low):.1f} 9'
        f'H{x(high):.1f}M{x(low):.1f} 5.5V12.5M{x(high):.1f} 5.5V12.5"/>'
        f'<circle class="dot" cx="{x(value):.1f}" cy="9" r="3.2"/></svg>'
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps values from low to high onto pixels from start to end."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        value = math.log10(value) if self.log else value
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1,), (1, 3), (1, 2, 5)):
                found = [f * 10.0**p for p in powers for f in factors if self.low <= f * 10.0**p <= self.high]
                if len(found) >= 3:
                    return found[:: math.ceil(len(found) / 6)]
            return found or [self.low]
        rough = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


def _padded(low: float, high: float, log: bool, share: float = 0.06) -> tuple[float, float]:
    """A range a little wider than the values; never empty."""
    if log:
        return (low / 1.15, high * 1.15) if high > low else (low / 2, high * 2)
    margin = (high - low) * share if high > low else abs(high) * 0.1 or 0.5
    return low - margin, high + margin


def _drawable(line: Line, log_x: bool, log_y: bool) -> Line:
    def fits(x: float, *ys: float) -> bool:
        return all(map(math.isfinite, (x, *ys))) and (not log_x or x > 0) and (not log_y or min(ys) > 0)

    return Line(line.name, [p for p in line.points if fits(*p)], [b for b in line.band if fits(*b)], line.colour)


def _grid(x: _Axis, y: _Axis, x_label: str, width: int, height: int) -> str:
    bottom = height - 34
    marks = [f'<path class="axis" d="M{x.start:.1f} {bottom}H{width - 16}"/>']
    for tick in y.ticks():
        marks.append(f'<path class="grid" d="M{x.start:.1f} {y(tick):.1f}H{width - 16}"/>')
        marks.append(f'<text x="{x.start - 6:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end">{compact(tick)}</text>')
    for tick in x.ticks():
        marks.append(f'<text x="{x(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{compact(tick)}</text>')
    marks.append(f'<text x="{width - 16}" y="{bottom + 30}" text-anchor="end">{escape(x_label)}</text>')
    return "".join(marks)


def _marks(line: Line, x: _Axis, y: _Axis) -> str:
    style, marks = f"c{line.colour % COLOURS}", ""
    if line.band:
        upper = [f"{x(at):.1f} {y(high):.1f}" for at, _, high in line.band]
        lower = [f"{x(at):.1f} {y(low):.1f}" for at, low, _ in reversed(line.band)]
        marks += f'<path class="band {style}" d="M{"L".join(upper + lower)}Z"/>'
    places = [(f"{x(at):.1f}", f"{y(value):.1f}") for at, value in line.points]
    if len(places) > 1:
        marks += f'<path class="line {style}" d="M{"L".join(" ".join(place) for place in places)}"/>'
    if len(places) <= 30:
        radius = 2.4 if len(places) > 1 else ALONE
        marks += "".join(f'<circle class="dot {style}" cx="{cx}" cy="{cy}" r="{radius}"/>' for cx, cy in places)
    return marks


def _legend(lines: Sequence[Line]) -> str:
    """Every line's name with the value it ends at."""
    items = "".join(
        f'<li><svg viewBox="0 0 26 10" aria-hidden="true">{key(line, 1, 25, 5)}</svg>'
        f"{escape(line.name)} <b>{compact(line.points[-1][1])}</b></li>"
        for line in lines
    )
    return f'<ul class="legend">{items}</ul>'


def _value(value: Any) -> str:
    if isinstance(value, Html):
        return value  # `str` of it would be text again, and its `&` escaped twice
    if (known := number(value)) is not None:
        return f"{known:.6g}" if isinstance(value, float) else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value)
    return "not given" if value is None else str(value)
