"""Small line charts as SVG: sharp at any size, light or dark as the page is, and without a script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40


@dataclass(frozen=True)
class Line:
    """One curve: its name, the style sheet's class for its colour, and a value for every step."""

    name: str
    style: str
    values: Sequence[float]


def line_chart(title: str, unit: str, steps: Sequence[str], lines: Sequence[Line]) -> str:
    """A chart with a legend and, for those who cannot see it, a table of its numbers.

    title: what is shown; unit: what of. steps: names of the points along the axis, as ``"4×4"``.
    """
    ticks = _ticks(max((v for line in lines for v in line.values if math.isfinite(v)), default=1.0))
    top = ticks[-1]
    right = WIDTH - RIGHT
    grid = "".join(
        f'<line class="ns-grid" x1="{LEFT}" x2="{right}" y1="{_y(t, top):.1f}" y2="{_y(t, top):.1f}"/>'
        f'<text class="ns-tick" x="{LEFT - 7}" y="{_y(t, top) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in ticks
    )
    labels = "".join(
        f'<text class="ns-tick" x="{_x(i, len(steps)):.1f}" y="{HEIGHT - BOTTOM + 18}" '
        f'text-anchor="middle">{escape(step)}</text>'
        for i, step in enumerate(steps)
        if len(steps) <= 9 or i % 2 == (len(steps) - 1) % 2
    )
    axis = (
        f'<text class="ns-axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"step, by its token grid</text>"
    )
    drawn = "".join(_line(line, top) for line in lines)
    legend = "".join(f'<span class="ns-key {line.style}">{escape(line.name)}</span>' for line in lines)
    return (
        f'<figure class="ns-chart"><figcaption><strong>{escape(title)}</strong> <span>{escape(unit)}</span>'
        f'<span class="ns-legend">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} at every step">'
        f"{grid}{labels}{axis}{drawn}</svg>{_table(steps, lines)}</figure>"
    )


def _line(line: Line, top: float) -> str:
    points = [(_x(i, len(line.values)), _y(v, top), v) for i, v in enumerate(line.values) if math.isfinite(v)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{escape(line.name)}: {v:.3g}</title></circle>'
        for x, y, v in points
    )
    return f'<g class="ns-line {line.style}"><polyline points="{path}"/>{dots}</g>'


def _table(steps: Sequence[str], lines: Sequence[Line]) -> str:
    head = "".join(f"<th scope='col'>{escape(step)}</th>" for step in steps)
    cells = ["".join(f"<td>{v:.3g}</td>" for v in line.values) for line in lines]
    rows = "".join(
        f"<tr><th scope='row'>{escape(line.name)}</th>{row}</tr>"
        for line, row in zip(lines, cells, strict=True)
    )
    return (
        f"<details><summary>Numbers</summary><div class='ns-scroll'><table><tr><td></td>{head}</tr>{rows}"
        f"</table></div></details>"
    )


def _x(index: int, count: int) -> float:
    return LEFT + 14 + index * (WIDTH - LEFT - RIGHT - 28) / max(count - 1, 1)


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)


def _ticks(largest: float) -> list[float]:
    """From 0 to at least ``largest``, in 3 to 6 round steps."""
    if largest < 1e-12:  # nothing that a curve could show
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(largest))
    step = next(s * power for s in (0.2, 0.5, 1.0, 2.0) if largest / (s * power) <= 5)
    return [round(i * step, 10) for i in range(math.ceil(largest / step - 1e-9) + 1)]
