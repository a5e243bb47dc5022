"""Generations that begin with tokens a caller has, or end before the finest grid."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.generation.request import given_maps
from nextscale.scales import ScaleSchedule


def resolve_steps(stop_after: int | None, schedule: ScaleSchedule) -> int:
    """How many scales are made. Raises InvalidArgumentError if that is not 1 to all of them."""
    if stop_after is None:
        return len(schedule)
    try:
        steps = 0 if isinstance(stop_after, bool) else operator.index(stop_after)
    except TypeError:
        steps = 0
    if not 0 < steps <= len(schedule):
        raise InvalidArgumentError(f"stop_after must be 1 to {len(schedule)} scales, got {stop_after!r}")
    return steps


def check_number(maps: Sequence[Tensor], schedule: ScaleSchedule, steps: int | None = None) -> None:
    """Raises InvalidArgumentError for more maps of given tokens than scales that are made."""
    most = len(schedule) if steps is None else steps
    if len(maps) > most:
        raise InvalidArgumentError(f"{len(maps)} maps of given_tokens for {most} scales")


def given_codes(
    tokenizer: Any, maps: Sequence[Tensor], schedule: ScaleSchedule, steps: int, count: int
) -> list[Tensor]:
    """Given tokens of a tokenizer with a codebook, for the first scales, as ``(count, h, w)``.

    Raises InvalidArgumentError for more maps than scales are made, and where shapes or values are wrong.
    """
    check_number(maps, schedule, steps)
    if not len(maps):
        return []
    tokenizer.partial_sums(maps)  # raises where shapes or values are wrong
    return given_maps(maps, schedule.grids, count)
