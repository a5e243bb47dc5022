"""Sizes of pictures and lists of scales for training, and how they fit a tokenizer's stride."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from nextscale.errors import InvalidArgumentError
from nextscale.scales import PRESETS, Grid, ScaleSchedule
from nextscale.training.wording import named

Size = int | tuple[int, int]  # pixels per side, or (height, width)
Sides = tuple[int | Grid, ...]

DEFAULT_SIZE = 32


def height_width(size: Size) -> tuple[int, int]:
    """Read a size as ``(height, width)``. Raises InvalidArgumentError for what is none."""
    sides = size if isinstance(size, (tuple, list)) else (size, size)
    whole = all(isinstance(side, Integral) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or min(sides) < 1:
        raise InvalidArgumentError(
            f"a size is a positive number of pixels, or height and width as in 64x48; got {size!r}"
        )
    return int(sides[0]), int(sides[1])


def as_text(size: Size) -> str:
    """Write a size as people give it, height x width: ``"64x48"``."""
    h, w = height_width(size)
    return f"{h}x{w}"


def fit_scales(size: Size | None, scales: Sequence[int | Grid] | None, stride: int) -> tuple[Size, Sides]:
    """The size of the pictures and the list of scales that belong together.

    size: of the pictures; ``None`` is what the scales end at, or :data:`DEFAULT_SIZE`.
    scales: sides of square grids or ``(height, width)`` pairs in cells; ``None`` is the published list that
        ends at the latent of this size, or one made from it (see :func:`scales_for`).
    stride: pixels per cell along a side.
    Raises InvalidArgumentError where they do not fit.
    """
    if scales is None:
        chosen = DEFAULT_SIZE if size is None else size
        return chosen, scales_for(cells_of(chosen, stride))
    schedule = ScaleSchedule.from_sides(scales)
    h, w = schedule.final
    if size is None:
        return (h * stride, w * stride), tuple(schedule.sides)
    cells = cells_of(size, stride)
    if cells != schedule.final:
        raise InvalidArgumentError(
            f"{named('scales')} end at {h}x{w} cells, which are {h * stride}x{w * stride} pixels (height x "
            f"width) with this tokenizer's stride of {stride}, but {named('size')} is {as_text(size)}; end "
            f"them at {cells[0]}x{cells[1]}, or give {named('size')} {h * stride}x{w * stride}"
        )
    return size, tuple(schedule.sides)


def cells_of(size: Size, stride: int) -> Grid:
    """The latent's grid for pictures of a size. Raises InvalidArgumentError unless the stride divides it."""
    h, w = height_width(size)
    if h % stride or w % stride:
        near = [max(round(side / stride), 1) * stride for side in (h, w)]
        raise InvalidArgumentError(
            f"{named('size')} must be multiples of this tokenizer's stride of {stride} pixels, got "
            f"{as_text(size)}; the nearest is {near[0]}x{near[1]}"
        )
    return h // stride, w // stride


def scales_for(final: Grid) -> Sides:
    """A list of scales that ends at a grid.

    For squares it is a published one where there is one. Else the shortest published list that reaches as far
    is shrunk to the longer side and narrowed to the grid's proportions, without grids that come twice.
    """
    longest = max(final)
    lists = sorted(PRESETS.values(), key=lambda sides: sides[-1])
    known = next((sides for sides in lists if sides[-1] >= longest), lists[-1])
    grids = [tuple(max(round(side * n / known[-1]), 1) for n in final) for side in known]
    made = ScaleSchedule(tuple(dict.fromkeys((h, w) for h, w in grids)))
    return tuple(made.sides)


def check_first_scale(sides: Sides) -> None:
    """Raises InvalidArgumentError unless a list of scales begins with one cell, as Infinity's do."""
    first = ScaleSchedule.from_sides(sides)[0]
    if first != (1, 1):
        raise InvalidArgumentError(
            f"{named('scales')} of a model with bits begin with 1x1, got {first[0]}x{first[1]}"
        )
