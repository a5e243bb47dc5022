"""Infinity's published scale schedules: 15 aspect ratios by 4 pixel budgets.

A ratio is height divided by width. The grids are the transformer's, also for the models whose tokenizer has
2x2 cells per token; a picture is 16 pixels per grid cell. Source: arXiv 2412.04431 and its official code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from numbers import Real
from types import MappingProxyType
from typing import NamedTuple

from nextscale.errors import InvalidArgumentError
from nextscale.scales import Grid, ScaleSchedule

PIXELS = 16  # per cell of the transformer's grid, along a side

# The schedules of the largest budget for ratios of at least 1; the reciprocal ratio swaps height and width.
_TALL = {
    1.0: "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
    1.25: "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    1.333: "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    1.5: "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    1.75: "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    2.0: "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    2.5: "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    3.0: "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}

# How many scales of the list a budget (a rounded number of pixels) uses.
BUDGETS: MappingProxyType[str, int] = MappingProxyType({"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13})
FULL = "1M"

# Ratios further than this beyond the extreme templates are refused instead of being rounded to them.
_SLACK = 1.1


def _reciprocal(ratio: float) -> float:
    return math.floor(1000 / ratio) / 1000  # three decimals, cut off: 0.666, 0.571


# In the official order, which decides ties: 1.0, 1.25, 0.8, 1.333, 0.75, ...
TEMPLATES: tuple[float, ...] = (1.0, *(r for tall in list(_TALL)[1:] for r in (tall, _reciprocal(tall))))


@cache
def released() -> Mapping[tuple[float, str], ScaleSchedule]:
    """Every published schedule by template ratio and pixel budget."""
    found = {}
    for tall, text in _TALL.items():
        sides = [grid.split("x") for grid in text.split()]
        grids = [(int(h), int(w)) for h, w in sides]
        for ratio in {tall, _reciprocal(tall)}:
            turned = grids if ratio == tall else [(w, h) for h, w in grids]
            for budget, scales in BUDGETS.items():
                found[ratio, budget] = ScaleSchedule(tuple(turned[:scales]))
    return MappingProxyType({(r, b): found[r, b] for r in TEMPLATES for b in BUDGETS})


def nearest_template(h_div_w: float) -> float:
    """The template ratio with the smallest absolute difference to height / width; the first one on a tie.

    Raises InvalidArgumentError unless the ratio is a positive number.
    """
    if isinstance(h_div_w, bool) or not isinstance(h_div_w, Real) or not 0 < h_div_w < math.inf:
        raise InvalidArgumentError(f"height / width must be a positive number, got {h_div_w!r}")
    return min(TEMPLATES, key=lambda template: abs(template - h_div_w))


def parse_aspect_ratio(aspect: float | str) -> float:
    """What a user writes to the nearest template ratio.

    aspect: ``"16:9"`` is width to height, as people write it. A number, also as text (``1.5``, ``"0.571"``),
        is height divided by width, as the templates are.

    Raises InvalidArgumentError for anything else and for ratios well beyond 1:3 and 3:1.
    """
    ratio = _ratio(aspect)
    if ratio is None or not min(TEMPLATES) / _SLACK <= ratio <= max(TEMPLATES) * _SLACK:
        raise InvalidArgumentError(
            f"unknown aspect ratio {aspect!r}; write WIDTH:HEIGHT between 3:1 and 1:3, as in '16:9', or a "
            f"number, height divided by width. The nearest of these is taken: "
            f"{', '.join(f'{t:g}' for t in sorted(TEMPLATES))}"
        )
    return nearest_template(ratio)


def _ratio(aspect: float | str) -> float | None:
    """Height / width, or None for what is no ratio."""
    if isinstance(aspect, bool) or not isinstance(aspect, (str, Real)):
        return None
    try:
        numbers = [float(part) for part in str(aspect).split(":")]
    except ValueError:
        return None
    if len(numbers) > 2 or not all(0 < n < math.inf for n in numbers):
        return None
    return numbers[1] / numbers[0] if len(numbers) == 2 else numbers[0]


def parse_budget(budget: str) -> str:
    """A pixel budget as the schedules name it; ``"0.6M"``, ``"0.60m"`` and the like are understood.

    Raises InvalidArgumentError listing the budgets.
    """
    for known in BUDGETS:
        if isinstance(budget, str) and budget[-1:].upper() == "M" and _same(budget[:-1], known[:-1]):
            return known
    raise InvalidArgumentError(f"unknown pixel budget {budget!r}; known: {', '.join(BUDGETS)}")


def _same(number: str, known: str) -> bool:
    try:
        return float(number) == float(known)
    except ValueError:
        return False


def schedule_for(aspect: float | str = 1.0, budget: str = FULL) -> ScaleSchedule:
    """The published schedule of an aspect ratio and a pixel budget.

    aspect, budget: see :func:`parse_aspect_ratio` and :func:`parse_budget`, which also name the errors.
    """
    return released()[parse_aspect_ratio(aspect), parse_budget(budget)]


def image_size(schedule: ScaleSchedule) -> tuple[int, int]:
    """``(height, width)`` in pixels of the pictures a published model makes with a schedule."""
    h, w = schedule.final
    return h * PIXELS, w * PIXELS


def rope_reference(grid: Grid) -> Grid:
    """The grid that rotary positions refer to, for pictures whose last grid is ``grid``.

    It is the last grid of the full budget, whatever the picture's own, so that positions mean the same place
    in the picture at all sizes.
    """
    h, w = grid
    return released()[nearest_template(h / w), FULL].final


class Snapped(NamedTuple):
    """A published schedule and the size of its pictures, ``(height, width)`` in pixels."""

    schedule: ScaleSchedule
    size: tuple[int, int]


def snap(height: float, width: float, budgets: Sequence[str] = tuple(BUDGETS)) -> Snapped:
    """The published size nearest to a wanted one: first in shape, then in area, both by factors.

    budgets: what to choose among, for a model that was not trained for all.
    Raises InvalidArgumentError unless both sides are positive numbers.
    """
    for name, side in (("height", height), ("width", width)):
        if isinstance(side, bool) or not isinstance(side, Real) or not 0 < side < math.inf:
            raise InvalidArgumentError(f"{name} must be a positive number of pixels, got {side!r}")
    allowed = {parse_budget(b) for b in budgets}
    choices = [Snapped(s, image_size(s)) for (_, budget), s in released().items() if budget in allowed]
    if not choices:
        raise InvalidArgumentError(f"budgets is empty; known: {', '.join(BUDGETS)}")

    def distance(choice: Snapped) -> tuple[float, float]:
        h, w = choice.size
        shape = abs(math.log(h / w) - math.log(height / width))
        return shape, abs(math.log(h * w) - math.log(height * width))

    return min(choices, key=distance)
