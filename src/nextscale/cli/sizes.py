"""Sizes of pictures and lists of scales, as people type them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nextscale.errors import InvalidArgumentError

if TYPE_CHECKING:
    from nextscale.scales import Grid

_SIDES = re.compile(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?")


def read_size(text: str | None) -> int | Grid | None:
    """``"64"``, or ``"64x48"``, height and width. Raises InvalidArgumentError for what is neither."""
    if text is None:
        return None
    sides = _sides(text)
    if sides is None:
        raise InvalidArgumentError(
            f"--size takes a number of pixels, or height and width as in 64x48; got {text!r}"
        )
    return sides


def read_scales(text: str | None) -> list[int | Grid] | None:
    """``"1,2,4"``, or ``"1,2x1,4x3"``. Raises InvalidArgumentError for anything else."""
    if text is None:
        return None
    scales = []
    for part in text.split(","):
        sides = _sides(part)
        if sides is None:
            raise InvalidArgumentError(
                f"--scales takes the side of every grid, as in 1,2,3,4,6,8, or height and width of those "
                f"that are not square, as in 1,2x1,4x3; got {part!r} in {text!r}"
            )
        scales.append(sides)
    return scales


def _sides(text: str) -> int | Grid | None:
    found = _SIDES.fullmatch(text.strip())
    if found is None:
        return None
    return (int(found[1]), int(found[2])) if found[2] else int(found[1])
