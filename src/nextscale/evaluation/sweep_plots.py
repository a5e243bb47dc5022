"""Plots of a sweep: a heat map over two axes, and a distance against precision and recall."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.plots import COLOURS, MARKERS, SEQUENTIAL, save, sheet
from nextscale.evaluation.report import TITLES, is_better_higher
from nextscale.evaluation.sweep_file import SSG_AXES, describe, label, word
from nextscale.evaluation.sweep_table import CellMean

Axes = Mapping[str, Sequence[Any]]

DISTANCES = ("fid", "clean_fid", "fd")
AGAINST = ("precision", "recall")
MOST_PANELS = 12


def distance_of(means: Sequence[CellMean]) -> str | None:
    """The Fréchet distance that was measured, by its name; ``None`` without a reference."""
    return next((name for name in DISTANCES if means and name in means[0].mean), None)


def longest_axes(axes: Axes) -> tuple[str, str] | None:
    """The two axes with most values, the longest second; ``None`` if fewer than two have several."""
    several = sorted((name for name in axes if len(axes[name]) > 1), key=lambda name: -len(axes[name]))
    return (several[1], several[0]) if len(several) > 1 else None


# ---------------------------------------------------------------------------- heat map


def heat_map(means: Sequence[CellMean], axes: Axes, chosen: tuple[str, str], figure: str, path: Path) -> None:
    """A figure over two axes, one panel for every combination of the others; the best cell is framed.

    chosen: the axes going down and going across. path: an .svg or .pdf; a .png lies beside it.
    Raises InvalidArgumentError for axes or figures that there are not, and for more than 12 panels.
    """
    down, across = chosen
    check_axes(axes, chosen)
    check_figure(means, figure)
    others = {name: values for name, values in axes.items() if name not in chosen}
    panels = list(itertools.product(*others.values()))
    found = {_key(m.cell.labels, axes): m for m in means if m.cell.labels}
    values = [m.mean[figure] for m in found.values() if figure in m.mean]
    best = (max if is_better_higher(figure) else min)(values)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    width, height = 0.62 * len(axes[across]) + 1.4, 0.42 * len(axes[down]) + 1.1
    with sheet(lines, columns, size=(max(columns * width, 4.0), lines * height)) as (drawing, all_places):
        image = None
        for place, combination in itertools.zip_longest(all_places.flat, panels):
            if combination is None:
                place.set_axis_off()
                continue
            fixed = dict(zip(others, combination, strict=True))
            cells = [
                [found.get(_key({**fixed, down: d, across: a}, axes)) for a in axes[across]]
                for d in axes[down]
            ]
            image = _panel(place, cells, figure, (min(values), max(values)), best)
            _name_ticks(place, axes, chosen)
            place.label_outer()
            place.set_title(describe(fixed) or title(figure))
        bar = drawing.colorbar(image, ax=all_places, shrink=0.8)
        bar.set_label(title(figure))
        bar.outline.set_visible(False)
        save(drawing, path)


def _panel(
    place: Any,
    cells: Sequence[Sequence[CellMean | None]],
    figure: str,
    span: tuple[float, float],
    best: float,
) -> Any:
    grid = np.array([[np.nan if c is None else c.mean.get(figure, np.nan) for c in row] for row in cells])
    image = place.imshow(grid, cmap=SEQUENTIAL, vmin=span[0], vmax=span[1], aspect="auto")
    place.grid(False)
    for (row, column), value in np.ndenumerate(grid):
        cell = cells[row][column]
        if cell is None or np.isnan(value):
            continue
        spread = cell.spread.get(figure)
        text = f"{value:.3g}" if spread is None else f"{value:.3g}\n± {spread:.1g}"
        dark = value < (span[0] + span[1]) / 2
        place.text(
            column, row, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black"
        )
        if value == best:
            place.add_patch(_frame(column, row))
    return image


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor=COLOURS[1], linewidth=1.8)


def _name_ticks(place: Any, axes: Axes, chosen: tuple[str, str]) -> None:
    down, across = chosen
    place.set_yticks(range(len(axes[down])), [label(v) for v in axes[down]])
    names = [label(v) for v in axes[across]]
    tilted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 6 else {}
    place.set_xticks(range(len(names)), names, **tilted)
    place.set_ylabel(word(down))
    place.set_xlabel(word(across))


def check_axes(axes: Axes, chosen: tuple[str, str]) -> None:
    """Raises InvalidArgumentError for axes that a heat map cannot be drawn over, naming those there are."""
    for name in chosen:
        if name not in axes:
            raise InvalidArgumentError(
                f"{name!r} is no axis of this sweep; it has {', '.join(axes) or 'none'}"
            )
    if chosen[0] == chosen[1]:
        raise InvalidArgumentError(f"a heat map needs two different axes, got {chosen[0]} twice")
    if not few_panels(axes, chosen):
        others = [name for name in axes if name not in chosen]
        raise InvalidArgumentError(
            f"a heat map of {chosen[0]} and {chosen[1]} would have more than {MOST_PANELS} panels, for every "
            f"combination of {', '.join(others)}; choose longer axes"
        )


def few_panels(axes: Axes, chosen: tuple[str, str]) -> bool:
    """Whether the other axes have so few combinations that each gets a panel."""
    return math.prod(len(values) for name, values in axes.items() if name not in chosen) <= MOST_PANELS


def check_figure(means: Sequence[CellMean], figure: str) -> None:
    """Raises InvalidArgumentError for a figure that was not measured, naming those that were."""
    known = list(means[0].mean) if means else []
    if figure not in known:
        raise InvalidArgumentError(
            f"{figure!r} was not measured; there are {', '.join(known) or 'no figures'}"
        )


def _key(labels: Mapping[str, Any], axes: Axes) -> str:
    return json.dumps([labels[name] for name in axes], sort_keys=True)


# ---------------------------------------------------------------------------- curves


def curves(means: Sequence[CellMean], axes: Axes, figure: str, path: Path) -> None:
    """A distance against precision and recall: a colour for every setting of SSG, a line along another axis.

    Of the other axes the longest is what lines go along, and every combination of the rest is a line of its
    own. Cells of their own are single points. Bars are the standard deviation over the sets.
    Raises InvalidArgumentError if precision and recall were not measured.
    """
    for name in (figure, *AGAINST):
        check_figure(means, name)
    plain = sorted((name for name in axes if name not in SSG_AXES), key=lambda name: -len(axes[name]))
    groups = _lines(means, plain[0] if plain else None)
    with sheet(1, 2, size=(7.6, 3.6), sharey=True) as (drawing, places):
        for place, against in zip(places[0], AGAINST, strict=True):
            for number, (name, lines) in enumerate(groups.items()):
                for line in lines:
                    _line(place, line, (against, figure), _look(number, len(groups)), name)
                    name = "_nolegend_"  # once is enough
            place.set_xlabel(title(against))
            place.locator_params(axis="x", nbins=5)
        places[0][0].set_ylabel(title(figure))
        drawing.legend(*places[0][0].get_legend_handles_labels(), loc="outside right upper", title="SSG")
        if plain and len(axes[plain[0]]) > 1:
            ends = f"{label(axes[plain[0]][0])} to {label(axes[plain[0]][-1])}"
            drawing.suptitle(f"lines: {word(plain[0])} from {ends}; the start is hollow", fontsize=8)
        save(drawing, path)


def _lines(means: Sequence[CellMean], along: str | None) -> dict[str, list[list[CellMean]]]:
    """Lines of cells by the name of their setting of SSG."""
    groups: dict[str, dict[str, list[CellMean]]] = {}
    for number, mean in enumerate(means):
        fixed = {k: v for k, v in mean.cell.labels.items() if k != along}
        key = json.dumps(fixed, sort_keys=True) if mean.cell.labels and along else f"alone {number}"
        groups.setdefault(ssg_name(mean.cell.settings), {}).setdefault(key, []).append(mean)
    return {name: list(lines.values()) for name, lines in groups.items()}


def _line(
    place: Any, line: Sequence[CellMean], names: tuple[str, str], look: Mapping[str, Any], name: str
) -> None:
    x, y = ([m.mean[n] for m in line] for n in names)
    bars = {f"{c}err": [m.spread[n] or 0.0 for m in line] for c, n in zip("xy", names, strict=True)}
    place.errorbar(x, y, **bars, **look, label=name, elinewidth=0.7, capsize=0)
    if len(line) > 1:
        place.plot(
            x[:1], y[:1], marker=look["marker"], color="white", markeredgecolor=look["color"], zorder=3
        )


def _look(number: int, of: int) -> dict[str, Any]:
    """Colour and marker of a line: from the palette while it lasts, else along a colour map."""
    marker = MARKERS[number % len(MARKERS)]
    if of <= len(COLOURS):
        return {"color": COLOURS[number], "marker": marker}
    from matplotlib import colormaps

    return {"color": colormaps[SEQUENTIAL](number / (of - 1)), "marker": marker}


def ssg_name(settings: Mapping[str, Any]) -> str:
    """SSG in a cell's settings, in some words."""
    given = {name: settings[name] for name in SSG_AXES if name in settings}
    if not given or given.get("ssg") == "off" or given.get("beta") == 0:
        return "off"
    whole = {"beta": given.pop("ssg")} if "ssg" in given and not isinstance(given["ssg"], Mapping) else {}
    table = given.pop("ssg", {})
    return label({**whole, **table, **given})


# ---------------------------------------------------------------------------- words


def title(figure: str) -> str:
    """A figure, for an axis or a sentence."""
    if figure.endswith("_infinity"):
        return f"{title(figure.removesuffix('_infinity'))}, N → ∞"
    return TITLES.get(figure, figure.replace("_", " ")).removesuffix(" × 1000")
